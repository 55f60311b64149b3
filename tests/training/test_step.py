"""The training step on networks of a few numbers: accumulation, averages, randomness, freezing."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from unialign_jax.models.functional import build
from unialign_jax.models.mmdit import Output
from unialign_jax.objective import TERMS, Batch, Draws, TextTokens
from unialign_jax.objective_config import ObjectiveConfig
from unialign_jax.training import step as steps
from unialign_jax.training.state import TrainState, create

B, L, V, E, SIDE, A = 6, 4, 7, 3, 2, 5
TOKENS = TextTokens(V - 1, 1, np.array([[2, 1, 1, 1]], np.int32))
RATE = 0.5


class Network(nnx.Module):
    """One linear layer per output."""

    def __init__(self, rngs: nnx.Rngs):
        self.velocity = nnx.Linear(2, 2, rngs=rngs)
        self.image = nnx.Linear(2, A, rngs=rngs)
        self.logits = nnx.Linear(E, V, rngs=rngs)
        self.text = nnx.Linear(E, A, rngs=rngs)

    def forward_branches(self, branches: Any, align_depth: int) -> list[Output]:
        return [
            Output(
                velocity=self.velocity(branch.latents),
                logits=self.logits(branch.text),
                image_hidden=self.image(branch.latents.reshape(len(branch.text), -1, 2)),
                text_hidden=self.text(branch.text),
                mid_image=self.image(branch.latents.mean((1, 2))),
                mid_text=self.text(branch.text.mean(1)),
            )
            for branch, _ in branches
        ]


class Encoder(nnx.Module):
    """An embedding table."""

    def __init__(self, rngs: nnx.Rngs):
        self.table = nnx.Embed(V, E, rngs=rngs)

    def __call__(self, ids: Any) -> Any:
        return self.table(ids)


@functools.cache
def networks() -> tuple[Any, Any]:
    return build(Network), build(Encoder)


def make_batch(**fields: Any) -> Batch:
    rng = np.random.default_rng(0)
    ids = rng.integers(2, V - 1, (2, B, L)).astype(np.int32)
    batch = Batch(
        target=rng.normal(size=(B, SIDE, SIDE, 2)).astype(np.float32),
        instruction_ids=ids[0],
        caption_ids=ids[1],
        caption_weight=np.ones(B, np.float32),
        image_features=rng.normal(size=(B, A)).astype(np.float32),
        text_features=rng.normal(size=(B, A)).astype(np.float32),
    )
    return batch.replace(**fields)


def draws_by_row(_: Any, batch: Batch, __: Any) -> Draws:
    """Draws that follow from each row's features, so that a cut batch has those of the whole."""
    uniform = jnp.mod(100 * batch.text_features, 1)
    return Draws(
        noise=batch.target[..., ::-1],
        density=batch.image_features[:, 0],
        dropout_uniform=uniform[:, 0],
        condition_uniform=uniform[:, 0],
        eps_t=uniform[:, 1],
        mask_uniform=uniform[:, :L] * 0.3,
    )


@functools.cache
def compiled(_: Any, task: str, rate: float, switches: tuple, settings: tuple) -> tuple[Any, Any]:
    """The step and its config, once for all tests; the first argument tells draws apart."""
    objective = {"contrastive_group": 2, "stratify_group": 2, **dict(switches)}
    config = steps.StepConfig(ObjectiveConfig(**objective), TOKENS, **dict(settings))
    schedule = optax.constant_schedule(rate)
    made = steps.make_train_step(*networks(), optax.sgd(rate), schedule, config, task=task)
    return jax.jit(made, compiler_options={"xla_backend_optimization_level": 0}), config


def run(
    batch: Batch | None = None,
    *,
    state: TrainState | None = None,
    repeats: int = 1,
    rate: float = RATE,
    task: str = "generate",
    objective: dict[str, Any] | None = None,
    **settings: Any,
) -> tuple[TrainState, TrainState, dict[str, float]]:
    """State before and after steps of gradient descent, and the metrics of the last."""
    switches = tuple((objective or {}).items())
    step, config = compiled(steps.sample_draws, task, rate, switches, tuple(settings.items()))
    if state is None:
        keys = jax.random.split(jax.random.key(0))
        names = ("transformer", "text_encoder")
        made = zip(names, networks(), keys, strict=True)
        state = create(
            {name: network.init(key) for name, network, key in made},
            optax.sgd(rate),
            train_text_encoder=config.train_text_encoder,
            with_ema=config.ema_decay > 0,
        )
    after, metrics = state, {}
    for _ in range(repeats):
        after, metrics = step(after, batch or make_batch())
    return state, after, {name: float(value) for name, value in metrics.items()}


def moved(before: TrainState, after: TrainState) -> Any:
    return jax.tree.map(lambda a, b: (a - b) / RATE, before.params, after.params)


def assert_trees_close(actual: Any, expected: Any, rtol: float = 1e-4) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), actual, expected
    )


@pytest.fixture
def without_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "sample_draws", draws_by_row)


@pytest.mark.usefixtures("without_chance")
def test_mean_over_micro_batches_is_the_whole_batch() -> None:
    whole, pieces = run(), run(micro_batches=3)
    assert pieces[2] == pytest.approx(whole[2], rel=1e-4)
    assert_trees_close(pieces[1].params, whole[1].params)


@pytest.mark.usefixtures("without_chance")
def test_sum_over_micro_batches_is_their_number_times_the_mean_in_the_gradient_only() -> None:
    mean = run(micro_batches=3)
    total = run(micro_batches=3, objective={"accumulate": "sum"})
    assert_trees_close(moved(*total[:2]), jax.tree.map(lambda x: 3 * x, moved(*mean[:2])))
    assert total[2]["grad_norm"] == pytest.approx(3 * mean[2]["grad_norm"], rel=1e-4)
    for name in ("loss", *(f"loss/{term}" for term in TERMS)):
        assert total[2][name] == pytest.approx(mean[2][name], rel=1e-6)


@pytest.mark.usefixtures("without_chance")
def test_one_micro_batch_is_summed_and_averaged_alike() -> None:
    mean, total = run(), run(objective={"accumulate": "sum"})
    assert_trees_close(total[1].params, mean[1].params)


def test_micro_batches_have_draws_of_their_own(monkeypatch) -> None:
    seen = []

    def draws(key: Any, batch: Batch, _: Any) -> Draws:
        jax.debug.callback(lambda value: seen.append(float(value)), jax.random.uniform(key))
        return draws_by_row(key, batch, _)

    monkeypatch.setattr(steps, "sample_draws", draws)
    run(micro_batches=3)
    jax.effects_barrier()
    assert len(seen) == len(set(seen)) == 3


def test_batch_that_cannot_be_cut_is_refused() -> None:
    with pytest.raises(ValueError, match="micro_batches 4 does not divide the batch 6"):
        run(micro_batches=4)


def test_metrics_name_every_term_the_rate_and_the_norm_of_the_gradient() -> None:
    before, after, metrics = run()
    assert set(metrics) == {"loss", "grad_norm", "lr", *(f"loss/{term}" for term in TERMS)}
    assert metrics["lr"] == RATE
    norm = float(optax.tree.norm(moved(before, after)))
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)
    weights = {"image": 1, "text": 0.2, "contrastive": 0.05, "align_image": 0.1, "align_text": 0.1}
    expected = sum(weight * metrics[f"loss/{term}"] for term, weight in weights.items())
    assert metrics["loss"] == pytest.approx(expected, rel=1e-5)


def test_answers_report_the_text_term_alone() -> None:
    batch = make_batch(label_mask=np.ones((B, L), bool))
    assert set(run(batch, task="answer")[2]) == {"loss", "loss/text", "grad_norm", "lr"}


def test_step_counts_and_draws_from_seed_and_step_alone() -> None:
    assert int(run(repeats=3)[1].step) == 3
    still = [run(repeats=repeats, rate=0.0)[2]["loss"] for repeats in (1, 2, 1)]
    assert still[0] == still[2] != still[1]
    assert run(rate=0.0, seed=1)[2]["loss"] != still[0]


def test_text_encoder_is_frozen_unless_told_otherwise() -> None:
    before, after, _ = run()
    jax.tree.map(
        np.testing.assert_array_equal, before.params["text_encoder"], after.params["text_encoder"]
    )
    before, after, _ = run(train_text_encoder=True)
    for leaf in jax.tree.leaves(moved(before, after)["text_encoder"]):
        assert np.abs(leaf).max() > 0


@pytest.mark.usefixtures("without_chance")
def test_gradient_of_the_transformer_does_not_depend_on_the_encoder_s_training() -> None:
    frozen, trained = moved(*run()[:2]), moved(*run(train_text_encoder=True)[:2])
    assert_trees_close(trained["transformer"], frozen["transformer"])


def test_moving_average_in_closed_form() -> None:
    before, after, _ = run(ema_decay=0.9, ema_warmup=False)
    expected = jax.tree.map(
        lambda a, b: 0.9 * a + 0.1 * b,
        before.params["transformer"],
        after.params["transformer"],
    )
    assert set(after.ema) == {"transformer"}
    assert_trees_close(after.ema["transformer"], expected)


def test_moving_average_warms_up() -> None:
    before, after, _ = run(ema_decay=0.9)
    first = jax.tree.map(
        lambda a, b: 0.1 * a + 0.9 * b, before.params["transformer"], after.params["transformer"]
    )
    assert_trees_close(after.ema["transformer"], first)
    late = before.replace(step=jnp.int32(10_000))
    _, after, _ = run(state=late, ema_decay=0.9)
    expected = jax.tree.map(
        lambda a, b: 0.9 * a + 0.1 * b, before.params["transformer"], after.params["transformer"]
    )
    assert_trees_close(after.ema["transformer"], expected)


def test_pixels_and_the_same_latents_train_alike() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (2, B, SIDE, SIDE, 2)).astype(np.uint8)
    latents = (pixels / 127.5 - 1).astype(np.float32)
    given = [
        run(make_batch(target=x[0], conditions=(x[1],)), task="edit")[2] for x in (pixels, latents)
    ]
    assert given[0] == pytest.approx(given[1], rel=1e-4)
