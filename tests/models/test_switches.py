"""The network's switches that the reference does not have: what each one computes."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unialign_jax.models.blocks import GATE_ATTENTION, GATE_MLP
from unialign_jax.models.functional import Functional, Params, build
from unialign_jax.models.mmdit import Branch, Heads, MMDiT
from unialign_jax.models.mmdit_config import MMDiTConfig
from unialign_jax.models.rotary import rotate
from unialign_jax.objective import image_loss
from unialign_jax.planning import flops

SMALL = MMDiTConfig(
    width=16,
    heads=2,
    layers=3,
    patch_size=2,
    channels=3,
    text_width=8,
    vocab_size=11,
    sample_size=8,
    position_table_size=8,
    null_image_tokens=2,
    adapter_hidden=8,
    adapter_out=8,
)


def network(seed: int = 0, **switches) -> tuple[Functional, Params]:
    """A network whose zero-initialised parts are random too."""
    functional = build(lambda rngs: MMDiT(dataclasses.replace(SMALL, **switches), rngs))
    leaves, tree = jax.tree.flatten(functional.init(jax.random.key(seed)))
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    leaves = [x + 0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return functional, jax.tree.unflatten(tree, leaves)


def branch(sigmas: tuple[float, float] = (0.9, 0.3)) -> Branch:
    keys = jax.random.split(jax.random.key(7), 3)
    return Branch(
        text=jax.random.normal(keys[0], (2, 5, 8)),
        timestep=1000 * jnp.asarray(sigmas),
        latents=jax.random.normal(keys[1], (2, 8, 8, 3)),
        conditions=(jax.random.normal(keys[2], (2, 8, 8, 3)),),
    )


def run(functional: Functional, params: Params, inputs: Branch):
    return functional.bind(params)(inputs, Heads(velocity=True, logits=True))


def test_predicting_the_image_gives_the_velocity_that_leads_to_it() -> None:
    plain, params = network()
    image, _ = network(prediction="image")
    inputs = branch()
    made = run(plain, params, inputs).velocity
    velocity = run(image, params, inputs).velocity
    sigma = np.asarray([0.9, 0.3]).reshape(2, 1, 1, 1)
    # x_sigma - sigma v is the clean image that a velocity stands for.
    np.testing.assert_allclose(inputs.latents - sigma * velocity, made, atol=1e-5)
    target = jax.random.normal(jax.random.key(9), made.shape)
    loss = image_loss(velocity, inputs.latents, target, jnp.asarray([0.9, 0.3]), "x0")
    assert float(loss) == pytest.approx(float(np.mean(np.square(made - target))), rel=1e-5)


def test_predicting_the_image_stays_finite_at_the_lowest_noise_level() -> None:
    functional, params = network(prediction="image")
    velocity = run(functional, params, branch((0.0, 1e-3))).velocity
    assert bool(jnp.all(jnp.isfinite(velocity)))


def test_unrolled_blocks_compute_the_same_values_and_gradients() -> None:
    scanned, params = network()
    unrolled, _ = network(unroll=True)
    inputs = branch()

    def loss(functional: Functional, params: Params) -> jax.Array:
        out = run(functional, params, inputs)
        return jnp.sum(jnp.square(out.velocity)) + jnp.sum(jnp.square(out.logits))

    expected, gradient = jax.value_and_grad(lambda p: loss(scanned, p))(params)
    value, ours = jax.value_and_grad(lambda p: loss(unrolled, p))(params)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4 * float(jnp.abs(b).max() + 1)),
        ours,
        gradient,
    )


def test_a_stream_that_no_head_reads_is_left_out_of_the_last_block_and_changes_nothing() -> None:
    functional, params = network()
    both = run(functional, params, branch())
    model = functional.bind(params)
    products = {}
    for name in ("velocity", "logits"):
        heads = Heads(**{name: True})
        alone = model(branch(), heads)
        np.testing.assert_allclose(getattr(alone, name), getattr(both, name), atol=1e-5)
        traced = jax.make_jaxpr(lambda p, h=heads: functional.bind(p)(branch(), h))(params)
        products[name] = flops.count(traced.jaxpr).total
    whole = jax.make_jaxpr(lambda p: run(functional, p, branch()))(params)
    heads_apart = flops.count(whole.jaxpr).total
    # 2 samples; 32 image and 5 text tokens of width 16; output 2 D^2 and MLP 16 D^2 for each.
    head = {"velocity": 2 * 2 * 5 * 16 * 11, "logits": 2 * 2 * (16 * 16 * 12 + 16 * 32)}
    for name, tokens in (("velocity", 5), ("logits", 32)):
        assert heads_apart - products[name] - head[name] == 2 * tokens * 18 * 16**2, name


def test_branches_one_after_the_other_compute_what_they_compute_together() -> None:
    asked = [
        (branch(), Heads(velocity=True, mid_image=True)),
        (branch((0.0, 0.0)), Heads(logits=True)),
    ]
    found = []
    for way in ("together", "apart"):
        functional, params = network(branches=way)

        def loss(params: Params, functional: Functional = functional) -> jax.Array:
            image, text = functional.bind(params).forward_branches(asked, 1)
            wanted = (image.velocity, image.mid_image, text.logits)
            return sum(jnp.sum(jnp.square(x)) for x in wanted)

        found.append(jax.value_and_grad(loss)(params))
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4 * float(jnp.abs(b).max() + 1)),
        found[1][1],
        found[0][1],
    )


def test_normalised_queries_and_keys_have_root_mean_square_of_their_scale() -> None:
    functional, params = network(qk_norm=True)
    block = functional.bind(params).blocks.layer(1)
    x = 30 * jax.random.normal(jax.random.key(3), (2, 4, 16))
    mod = jax.random.normal(jax.random.key(4), (2, 6, 16))
    q, k, v = block.image.queries_keys_values(x, mod)
    scales = params["blocks"]["layers"]["image"]
    for made, name in ((q, "query_norm"), (k, "key_norm")):
        scale = scales[name]["scale"][1]
        assert scale.shape == (8,)
        rms = np.sqrt(np.mean(np.square(made / scale), axis=-1))
        np.testing.assert_allclose(rms, 1, rtol=1e-3)
    assert float(jnp.std(jnp.sqrt(jnp.mean(jnp.square(v), -1)))) > 0.1


def test_normalised_attention_does_not_see_the_scale_of_queries() -> None:
    functional, params = network(qk_norm=True)
    scaled = jax.tree.map(lambda x: x, params)
    for stream in ("image", "text"):
        qkv = dict(params["blocks"]["layers"][stream]["qkv"])
        factor = jnp.asarray([3.0, 0.5, 1.0])
        qkv = {
            "kernel": qkv["kernel"] * factor[None, None, :, None, None],
            "bias": qkv["bias"] * factor[None, :, None, None],
        }
        scaled["blocks"]["layers"][stream] = {**params["blocks"]["layers"][stream], "qkv": qkv}
    expected = run(functional, params, branch()).logits
    np.testing.assert_allclose(run(functional, scaled, branch()).logits, expected, atol=1e-3)
    plain, _ = network()
    without = {k: v for k, v in params.items() if k != "blocks"}
    layers = {
        stream: {
            name: value
            for name, value in params["blocks"]["layers"][stream].items()
            if not name.endswith("_norm")
        }
        for stream in ("image", "text")
    }
    without["blocks"] = {**params["blocks"], "layers": layers}
    assert not np.allclose(run(plain, without, branch()).logits, expected, atol=1e-2)


def test_the_defaults_add_no_parameters() -> None:
    names = {jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(network()[1])}
    switched = network(qk_norm=True, prediction="image", unroll=True)[1]
    more = {jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(switched)}
    assert {name.split("['")[-1] for name in more - names} == {"scale']"}
    assert len(more - names) == 4


def windows(x: np.ndarray, conv: Params) -> np.ndarray:
    """A 3 x 3 convolution with zeros around, as sums over shifted images."""
    _, height, width, _ = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return conv["bias"] + sum(
        padded[:, i : i + height, j : j + width] @ conv["kernel"][i, j]
        for i in range(3)
        for j in range(3)
    )


def gelu(x: np.ndarray) -> np.ndarray:
    """By tanh."""
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def test_a_stem_adds_the_patches_of_two_convolutions_to_every_image() -> None:
    functional, params = network(stem_channels=4)
    plain, _ = network()
    without = {name: part for name, part in params.items() if name != "stem"}
    inputs = branch()
    found, text = functional.bind(params).embed(inputs)
    before, same_text = plain.bind(without).embed(inputs)
    np.testing.assert_array_equal(text, same_text)

    stem = jax.tree.map(np.asarray, params["stem"])
    images = np.concatenate([inputs.latents, *inputs.conditions])
    for name in ("first", "second"):
        images = gelu(windows(images, stem[name]))
    assert images.shape == (4, 8, 8, 8)
    # Rows and columns of patches, then those within a patch.
    patches = images.reshape(4, 4, 2, 4, 2, 8).transpose(0, 1, 3, 2, 4, 5).reshape(4, 16, 32)
    tokens = patches @ stem["out"]["kernel"] + stem["out"]["bias"]
    added = np.concatenate([tokens[:2], tokens[2:]], axis=1)
    np.testing.assert_allclose(found - before, added, atol=1e-4)


def test_details_are_convolutions_of_tokens_and_of_all_images_side_by_side() -> None:
    functional, params = network(detail_channels=4, prediction="image")
    plain, _ = network(prediction="image")
    without = {name: part for name, part in params.items() if name != "details"}
    inputs = branch()
    heads = Heads(velocity=True, image_hidden=True)
    found, before = (
        model.bind(weights)(inputs, heads)
        for model, weights in ((functional, params), (plain, without))
    )
    np.testing.assert_array_equal(found.image_hidden, before.image_hidden)

    details = jax.tree.map(np.asarray, params["details"])
    absent = np.zeros((2, 8, 8, 6), np.float32)
    seen = np.concatenate([inputs.latents, inputs.conditions[0], absent], axis=-1)
    drawn = before.image_hidden @ details["tokens"]["kernel"] + details["tokens"]["bias"]
    # [rows, columns] of patches, each of 2 x 2 pixels of 4 channels.
    drawn = drawn.reshape(2, 4, 4, 2, 2, 4).transpose(0, 1, 3, 2, 4, 5).reshape(2, 8, 8, 4)
    made = gelu(drawn + windows(seen, details["pixels"]))
    made = windows(gelu(windows(made, details["middle"])), details["out"])
    # The velocity is what is noisy less what was made, by the noise level.
    added = -made / np.reshape([0.9, 0.3], (2, 1, 1, 1))
    assert np.abs(made).max() > 0.1
    np.testing.assert_allclose(found.velocity - before.velocity, added, atol=1e-4)


def test_a_network_with_details_starts_as_one_without() -> None:
    config = dataclasses.replace(SMALL, detail_channels=4)
    functional = build(lambda rngs: MMDiT(config, rngs))
    params = functional.init(jax.random.key(0))
    assert float(jnp.max(jnp.abs(run(functional, params, branch()).velocity))) == 0


@pytest.mark.parametrize("switch", ["stem_channels", "detail_channels"])
def test_fewer_than_no_channels_are_refused(switch) -> None:
    with pytest.raises(ValueError, match=f"{switch} -1"):
        dataclasses.replace(SMALL, **{switch: -1})


def initial(**switches) -> Params:
    functional = build(lambda rngs: MMDiT(dataclasses.replace(SMALL, **switches), rngs))
    return functional.init(jax.random.key(0))


def test_initial_gates_are_the_only_thing_that_they_change() -> None:
    zero, one = initial()["blocks"], initial(initial_gates=1.0)["blocks"]
    for stream in ("image", "text"):
        bias = one["modulation"][stream].pop("bias")
        assert not np.any(zero["modulation"][stream].pop("bias"))
        of_gates = bias[:, [GATE_ATTENTION, GATE_MLP]]
        assert np.all(of_gates == 1) and float(jnp.sum(bias)) == float(jnp.sum(of_gates))
    jax.tree.map(np.testing.assert_array_equal, zero, one)


def test_blocks_with_gates_of_0_are_the_identity_and_with_1_they_are_not() -> None:
    moved = []
    for gates in (0.0, 1.0):
        config = dataclasses.replace(SMALL, initial_gates=gates)
        functional = build(lambda rngs, config=config: MMDiT(config, rngs))
        model = functional.bind(functional.init(jax.random.key(0)))
        tokens = model.embed(branch())
        e = jax.nn.silu(model.embed_time(branch().timestep))
        after = model.blocks.run((tokens,), [model.blocks.modulations(e)], [None], 0, SMALL.layers)
        moved.append(
            [float(jnp.max(jnp.abs(a - b))) for a, b in zip(after[0], tokens, strict=True)]
        )
    assert moved[0] == [0.0, 0.0]
    assert min(moved[1]) > 0.1


def test_the_rotary_bias_is_of_the_first_heads_image_queries_and_keys_alone() -> None:
    plain, biased = initial()["blocks"]["layers"], initial(rotary_bias=2.0)["blocks"]["layers"]
    bias = biased["image"]["qkv"].pop("bias")
    assert not np.any(plain["image"]["qkv"].pop("bias"))
    assert bias.shape == (SMALL.layers, 3, 2, 8)
    assert np.all(bias[:, :2, 0] == 2)
    assert float(jnp.sum(bias)) == 2 * bias[:, :2, 0].size
    jax.tree.map(np.testing.assert_array_equal, plain, biased)


def test_with_rotary_bias_the_first_head_looks_at_one_place_in_all_images() -> None:
    config = dataclasses.replace(SMALL, rotary_fastest=3.0, rotary_slowest=0.4, rotary_bias=3.0)
    functional = build(lambda rngs: MMDiT(config, rngs))
    model = functional.bind(functional.init(jax.random.key(0)))
    image, _ = model.embed(branch())
    e = jax.nn.silu(model.embed_time(branch().timestep))
    mod = model.blocks.modulations(e)[0][0]
    q, k, _ = model.blocks.layer(0).image.queries_keys_values(image, mod)
    q, k = (rotate(x, *model._rotations(branch())) for x in (q, k))
    weights = jax.nn.softmax(jnp.einsum("btk,bsk->bts", q[:, :, 0], k[:, :, 0]) / 8**0.5)
    count = image.shape[1] // 2
    own = jnp.arange(2 * count) % count
    same = own[:, None] == own[None]
    assert float(jnp.mean(jnp.sum(jnp.where(same, weights, 0), -1))) > 0.5


def test_an_unknown_prediction_is_refused() -> None:
    with pytest.raises(ValueError, match="velocity, image"):
        dataclasses.replace(SMALL, prediction="noise")
