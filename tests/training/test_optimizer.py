"""The optimiser against torch.optim.AdamW, and its schedule, clipping and freezing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from unialign_jax.training.optimizer import OptimizerConfig, learning_rate_schedule, make_optimizer


def make_params(seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "transformer": {
            "image_in": {"kernel": rng.normal(size=(5, 4)).astype(np.float32)},
            "blocks": {"bias": rng.normal(size=(3, 4)).astype(np.float32)},
            "null_image": rng.normal(size=(2, 4)).astype(np.float32),
        }
    }


def apply_steps(config: OptimizerConfig, params: dict, gradients: list[dict]) -> dict:
    tx, _ = make_optimizer(config)
    state = tx.init(params)
    for gradient in gradients:
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("clip_scale", [1.0, 12.0])
def test_three_steps_equal_torch_adamw_with_gradient_clipping(clip_scale: float) -> None:
    torch = pytest.importorskip("torch")
    config = OptimizerConfig(
        learning_rate=1e-2,
        warmup_steps=2,
        weight_decay=0.1,
        clip=2.0,
        clip_scale=clip_scale,
        freeze=(),
    )
    params = make_params()
    # The middle gradient is below the clip, the others above.
    gradients = [
        jax.tree.map(lambda x, s=scale: s * x, make_params(seed))
        for seed, scale in [(1, 3.0), (2, 0.01), (3, 1.0)]
    ]
    ours = apply_steps(config, params, gradients)

    trained = [torch.nn.Parameter(torch.from_numpy(x.copy())) for x in jax.tree.leaves(params)]
    theirs = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.1, eps=1e-8)
    for step, gradient in enumerate(gradients):
        for group in theirs.param_groups:
            group["lr"] = 1e-2 * min(1.0, step / 2)
        for parameter, leaf in zip(trained, jax.tree.leaves(gradient), strict=True):
            # The reference sums its micro-batches; Adam does not see the scale, the clip does.
            parameter.grad = torch.from_numpy(leaf * np.float32(clip_scale))
        torch.nn.utils.clip_grad_norm_(trained, 2.0)
        theirs.step()
    for mine, other in zip(jax.tree.leaves(ours), trained, strict=True):
        np.testing.assert_allclose(mine, other.detach().numpy(), rtol=2e-5, atol=2e-6)


def test_the_first_step_has_rate_zero() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=10)
    params = make_params()
    after = apply_steps(config, params, [make_params(1)])
    jax.tree.map(np.testing.assert_array_equal, params, after)


def test_warm_up_is_linear_and_then_constant() -> None:
    schedule = learning_rate_schedule(OptimizerConfig(learning_rate=3e-5, warmup_steps=2000))
    rates = [float(schedule(step)) for step in (0, 1, 1000, 2000, 50_000)]
    np.testing.assert_allclose(rates, [0, 1.5e-8, 1.5e-5, 3e-5, 3e-5], rtol=1e-6)


def test_cosine_decay_ends_at_zero() -> None:
    schedule = learning_rate_schedule(
        OptimizerConfig(learning_rate=2.0, warmup_steps=10, decay_steps=30)
    )
    rates = [float(schedule(step)) for step in (10, 20, 30, 40)]
    np.testing.assert_allclose(rates, [2.0, 1.0, 0.0, 0.0], atol=1e-6)


def test_frozen_parameters_neither_move_nor_decay_nor_have_moments() -> None:
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=0, weight_decay=0.5)
    params = make_params()
    after = apply_steps(config, params, [make_params(1)])
    np.testing.assert_array_equal(
        after["transformer"]["null_image"], params["transformer"]["null_image"]
    )
    moved = np.abs(after["transformer"]["blocks"]["bias"] - params["transformer"]["blocks"]["bias"])
    assert moved.min() > 0
    state = make_optimizer(config)[0].init(params)
    shapes = [leaf.shape for leaf in jax.tree.leaves(state)]
    assert (2, 4) not in shapes
    assert shapes.count((5, 4)) == 2


def test_frozen_gradients_do_not_count_in_the_clipped_norm() -> None:
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=0, clip=1e6, eps=1.0)
    params, gradient = make_params(), make_params(1)
    huge = jax.tree.map(jnp.asarray, gradient)
    huge["transformer"]["null_image"] = huge["transformer"]["null_image"] * 1e12
    jax.tree.map(
        np.testing.assert_array_equal,
        apply_steps(config, params, [gradient]),
        apply_steps(config, params, [huge]),
    )


def test_a_decay_shorter_than_the_warm_up_is_refused() -> None:
    with pytest.raises(ValueError, match="decay_steps=5"):
        OptimizerConfig(warmup_steps=10, decay_steps=5)
