"""The transformer and its training loss against the PyTorch peer, at sizes without goldens."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.peer import losses as peer_losses
from tests.peer.draws import ODD_SIZES, ODD_WEIGHTS, Draw, Variant
from tests.peer.draws import losses as draw_losses
from tests.peer.golden import run_case
from tests.peer.golden_losses import tensors
from unialign_jax.convert.names import (
    config_from_json,
    transformer_from_torch,
    transformer_to_torch,
)
from unialign_jax.convert.torch_layers import Sizes
from unialign_jax.convert.torch_model import Transformer
from unialign_jax.models.functional import build
from unialign_jax.models.mmdit import Branch, Heads, MMDiT
from unialign_jax.objective import Batch, Draws, TextTokens, dual_stream_loss
from unialign_jax.objective_config import ObjectiveConfig

torch = pytest.importorskip("torch")

# Head dim 64, single pixels as patches, the first token as mask, an even table for odd crops.
WIDE = Sizes(
    heads=2,
    head_dim=64,
    layers=2,
    patch=1,
    channels=5,
    text_width=33,
    vocab=45,
    sample_size=6,
    table_size=10,
    null_tokens=3,
    adapter_hidden=21,
    adapter_out=70,
    mask_id=0,
)
# One head, patches of three pixels, more layers.
DEEP = Sizes(
    heads=1,
    head_dim=20,
    layers=6,
    patch=3,
    channels=2,
    text_width=12,
    vocab=200,
    sample_size=12,
    table_size=9,
    null_tokens=11,
    adapter_hidden=50,
    adapter_out=16,
    mask_id=199,
)
CASES = [  # sizes, patches (rows, columns), conditions, depth, text length, timesteps
    (ODD_SIZES, (7, 7), 0, None, 4, [1.0, 99.0]),
    (ODD_SIZES, (2, 5), 1, 4, 9, [640.0, 3.0]),
    (ODD_SIZES, None, 0, 3, 6, [0.0, 250.0]),
    (WIDE, (3, 10), 1, 1, 5, [0.0, 77.7]),
    (WIDE, (5, 4), 2, 2, 12, [1000.0]),
    (DEEP, (4, 1), 3, 5, 3, [20.0, 0.5, 100.0]),
    (DEEP, (1, 9), 0, 6, 7, [999.0]),
    (DEEP, None, 0, None, 5, [10.0]),
]


def nhwc(image) -> np.ndarray:
    return np.moveaxis(np.asarray(image), 1, -1)


def nchw(image) -> np.ndarray:
    return np.moveaxis(np.asarray(image), -1, 1)


class Pair:
    """The same random weights in both frameworks."""

    def __init__(self, sizes: Sizes, seed: int = 0, **variant):
        self.draw = Draw(Variant(seed=seed, sizes=sizes, **variant))
        self.state = self.draw.state()
        self.peer = Transformer(sizes)
        self.peer.load_state_dict(tensors(self.state), strict=True)
        self.config = config_from_json(*sizes.to_json())
        self.model = build(lambda rngs: MMDiT(self.config, rngs))
        self.params = transformer_from_torch(self.state, self.config)


def relative_error(actual, expected) -> float:
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    return float(np.max(np.abs(actual - expected)) / np.max(np.abs(expected)))


@pytest.mark.parametrize(("sizes", "grid", "conditions", "depth", "length", "times"), CASES)
def test_outputs_equal_the_peer(sizes, grid, conditions, depth, length, times):
    pair = Pair(sizes)
    batch = len(times)
    arrays = {"in_text": pair.draw.text(batch, length), "in_timestep": np.float32(times)}
    if grid is not None:
        arrays["in_latents"] = pair.draw.latents(batch, grid)
        arrays |= pair.draw.conditions("in_cond", conditions, arrays["in_latents"])
    expected = run_case(pair.peer, arrays, depth)

    branch = Branch(
        arrays["in_text"],
        arrays["in_timestep"],
        None if grid is None else nhwc(arrays["in_latents"]),
        tuple(nhwc(arrays[f"in_cond_{k}"]) for k in range(conditions)),
    )
    middle = depth is not None
    heads = Heads(grid is not None, True, True, True, mid_image=middle, mid_text=middle)
    run = jax.jit(lambda params, branch: pair.model.bind(params)(branch, heads, depth))
    out = run(pair.params, branch)
    actual = {
        # Without an image the reference gives the last hidden state in place of the velocity.
        "out_image": out.image_hidden if grid is None else nchw(out.velocity),
        "out_text_logits": out.logits,
        "out_hidden": out.image_hidden,
        "out_text_hidden": out.text_hidden,
    }
    if middle:
        actual |= {"out_mid_image": out.mid_image, "out_mid_text": out.mid_text}
    assert set(actual) == set(expected)
    tolerance = 5e-5 if max(times) > 100 else 1e-5
    errors = {name: relative_error(actual[name], expected[name]) for name in expected}
    assert max(errors.values()) <= tolerance, errors


@pytest.mark.parametrize("sizes", [ODD_SIZES, WIDE, DEEP])
def test_names_make_a_round_trip_bit_for_bit(sizes):
    pair = Pair(sizes)
    back = transformer_to_torch(pair.params, pair.config)
    assert set(back) == set(pair.state)
    for name, array in pair.state.items():
        assert back[name].dtype == array.dtype and back[name].shape == array.shape, name
        np.testing.assert_array_equal(back[name], array, err_msg=name)


def peer_gradients(pair: Pair, total) -> dict[str, np.ndarray]:
    names, parameters = zip(*pair.peer.named_parameters(), strict=True)
    grads = torch.autograd.grad(total, parameters, allow_unused=True)
    return {
        name: np.zeros(tuple(p.shape), np.float32) if grad is None else grad.numpy()
        for name, p, grad in zip(names, parameters, grads, strict=True)
    }


def assert_gradients_equal(pair: Pair, actual, expected) -> None:
    """Relative L2 per parameter; exactly zero where the peer has none."""
    ours = transformer_to_torch(actual, pair.config)
    for name, grad in expected.items():
        difference, norm = np.linalg.norm(ours[name] - grad), np.linalg.norm(grad)
        assert difference <= 1e-4 * norm, (name, difference, norm)


def stand_in(pair: Pair, length: int):
    """The text encoder of the goldens, in both frameworks."""
    sizes, null_ids = pair.draw.sizes, np.full((1, length), 1)
    table = pair.draw.normal(sizes.vocab, sizes.text_width)
    position = pair.draw.normal(length, sizes.text_width)
    theirs = peer_losses.StandInEncoder(
        *(torch.from_numpy(array) for array in (table, position, null_ids))
    )
    ours = lambda ids: jnp.asarray(table)[ids] + position[: ids.shape[1]]
    return theirs, ours, TextTokens(sizes.mask_id, 1, null_ids.astype(np.int32))


OBJECTIVE = ObjectiveConfig.parity(
    text_weight=ODD_WEIGHTS.caption,
    contrastive_weight=ODD_WEIGHTS.contrastive,
    align_weight=ODD_WEIGHTS.alignment,
    align_depth=2,
    contrastive_group=0,
    stratify_group=0,
)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("sizes", "task", "conditions"),
    [
        (WIDE, "generate", 0),
        (DEEP, "edit", 1),
        (WIDE, "compose", 3),
        pytest.param(DEEP, "generate", 0, marks=SLOW),
        pytest.param(WIDE, "edit", 1, marks=SLOW),
        pytest.param(WIDE, "compose", 2, marks=SLOW),
        pytest.param(DEEP, "compose", 3, marks=SLOW),
    ],
)
def test_loss_terms_and_every_gradient_of_a_training_step_equal_the_peer(sizes, task, conditions):
    grids = {"gen": (4, 3), "edit": (1, 5), "compose": (3, 2)}
    pair = Pair(sizes, seed=conditions, batch=5, text_length=7, **grids)
    name = {"generate": "gen"}.get(task, task)
    arrays = draw_losses(pair.draw)[f"total_loss_{name}"]
    for k in range(conditions, 3):
        arrays.pop(f"cond_latents_{k}", None)
    theirs, ours, tokens = stand_in(pair, 7)
    i = tensors(arrays)
    expected = peer_losses.total_loss(pair.peer, theirs, i, i, 2, ODD_WEIGHTS)

    batch = Batch(
        target=nhwc(arrays["target_latents"]),
        instruction_ids=arrays["instruction_ids"].astype(np.int32),
        caption_ids=arrays["caption_ids"].astype(np.int32),
        conditions=tuple(nhwc(arrays[f"cond_latents_{k}"]) for k in range(conditions)),
        image_features=arrays["feat_image"],
        text_features=arrays["feat_text"],
    )
    draws = Draws(
        noise=nhwc(arrays["img_noise"]),
        density=arrays["img_normal"],
        dropout_uniform=arrays["img_dropout_uniform"],
        condition_uniform=np.ones(5, np.float32),
        eps_t=arrays["txt_eps_t"],
        mask_uniform=arrays["txt_mask_uniform"],
    )

    def loss(params):
        transformer = pair.model.bind(params)
        return dual_stream_loss(
            transformer, ours, batch, draws, OBJECTIVE, task=task, tokens=tokens
        )

    (total, report), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(pair.params)
    terms = {
        "image": "image",
        "text": "caption",
        "contrastive": "contrastive",
        "align_text": "text_align",
        "align_image": "image_align",
    }
    assert set(report.terms) == set(terms)
    assert relative_error(total, expected["total"].item()) <= 1e-5
    for term, other in terms.items():
        value = expected[f"loss_{other}"].item()
        assert relative_error(report.terms[term], value) <= 1e-5, term
    assert_gradients_equal(pair, grads, peer_gradients(pair, expected["total"]))


def test_answer_loss_with_a_label_mask_and_its_gradients_equal_the_peer():
    pair = Pair(WIDE, batch=3, text_length=6, gen=(2, 4))
    arrays = draw_losses(pair.draw)["text_loss_label_mask"]
    theirs, ours, tokens = stand_in(pair, 6)
    i = tensors(arrays)
    expected = peer_losses.text_loss(
        pair.peer, theirs, i["x0"], i["latents"], i["eps_t"], i["mask_uniform"], 2, i["label_mask"]
    )["loss"]
    ids = arrays["x0"].astype(np.int32)
    target = nhwc(arrays["latents"])
    batch = Batch(target, ids, ids, label_mask=arrays["label_mask"].astype(bool))
    zeros = np.zeros(3, np.float32)
    draws = Draws(target, zeros, zeros, zeros, arrays["eps_t"], arrays["mask_uniform"])
    objective = dataclasses.replace(OBJECTIVE, text_weight=1.0)

    def loss(params):
        transformer = pair.model.bind(params)
        return dual_stream_loss(
            transformer, ours, batch, draws, objective, task="answer", tokens=tokens
        )[0]

    total, grads = jax.jit(jax.value_and_grad(loss))(pair.params)
    assert relative_error(total, expected.item()) <= 1e-5
    assert_gradients_equal(pair, grads, peer_gradients(pair, expected))
