"""The T5 encoder against the reference's recorded numbers and against transformers itself."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from unialign_jax.convert.t5_names import t5_config_from_json, t5_from_torch, t5_to_torch
from unialign_jax.models.functional import Functional, build
from unialign_jax.models.t5 import T5Config, T5Encoder, relative_buckets

COMPONENTS = pathlib.Path(__file__).parents[1] / "goldens" / "components"
TINY = T5Config(
    vocab_size=40, width=12, kv_dim=6, heads=3, layers=3, mlp_width=20, relative_buckets=8
)


def functional_encoder(config: T5Config) -> Functional:
    return build(lambda rngs: T5Encoder(config, rngs))


def bind(params, config: T5Config) -> T5Encoder:
    return functional_encoder(config).bind(params)


def init(config: T5Config, seed: int):
    return jax.jit(functional_encoder(config).init)(jax.random.key(seed))


def random_params(config: T5Config, seed: int):
    """Like `init`, without the time that compiling it takes."""
    rng = np.random.default_rng(seed)
    draw = lambda leaf: rng.normal(0, leaf.shape[-1] ** -0.5, leaf.shape).astype(leaf.dtype)
    return jax.tree.map(draw, functional_encoder(config).abstract)


def encode(params, config: T5Config, ids, mask=None):
    run = jax.jit(lambda params, ids, mask: bind(params, config)(ids, mask))
    return run(params, jnp.asarray(ids), None if mask is None else jnp.asarray(mask, bool))


def assert_close(actual, expected, tolerance=1e-5):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.max(np.abs(actual - expected)) <= tolerance * np.max(np.abs(expected))


@pytest.fixture(scope="module")
def golden():
    state = load_file(COMPONENTS / "t5_encoder" / "model.safetensors")
    config = t5_config_from_json(
        json.loads((COMPONENTS / "t5_encoder" / "config.json").read_text())
    )
    return config, state, dict(np.load(COMPONENTS / "t5_io.npz"))


def test_output_without_a_mask_equals_the_reference(golden):
    config, state, io = golden
    out = encode(t5_from_torch(state, config), config, io["input_ids"])
    assert_close(out, io["out"])
    assert_close(out, io["hidden_3"])  # the reference's last hidden state is behind the norm


def test_output_with_a_mask_equals_the_reference(golden):
    config, state, io = golden
    out = encode(t5_from_torch(state, config), config, io["input_ids"], io["attention_mask"])
    assert_close(out, io["out_masked"])


def test_output_of_the_first_ids_alone_equals_the_reference(golden):
    config, state, io = golden
    out = encode(t5_from_torch(state, config), config, io["input_ids"][:, :7])
    assert_close(out, io["out_first7"])


def test_position_bias_equals_the_reference(golden):
    config, state, io = golden
    model = bind(t5_from_torch(state, config), config)
    assert_close(model.position_bias(40)[None], io["position_bias"])


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_hidden_state_after_each_block_equals_the_reference(golden, depth):
    config, state, io = golden
    params = t5_from_torch(state, config)
    params["blocks"] = jax.tree.map(lambda leaf: leaf[:depth], params["blocks"])
    if depth == 0:
        hidden = params["token_embedding"]["embedding"][io["input_ids"]]
    else:
        shallow = dataclasses.replace(config, layers=depth)
        run = jax.jit(lambda params, ids: bind(params, shallow).residual_stream(ids))
        hidden = run(params, io["input_ids"])
    assert_close(hidden, io[f"hidden_{depth}"])


def torch_encoder(vocab_size, d_model, d_kv, d_ff, num_layers, num_heads, **relative):
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(d_model)
    config = transformers.T5Config(
        vocab_size=vocab_size,
        d_model=d_model,
        d_kv=d_kv,
        d_ff=d_ff,
        num_layers=num_layers,
        num_heads=num_heads,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
        **{f"relative_attention_{name}": value for name, value in relative.items()},
    )
    model = transformers.T5EncoderModel(config).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms start at one: make every scale count
            parameter.data += 0.1 * torch.randn_like(parameter)
    state = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    return torch, model, t5_config_from_json(config.to_dict()), state


@pytest.mark.parametrize(
    ("sizes", "relative", "length"),
    [
        ((50, 16, 4, 24, 1, 4), {}, 5),
        ((99, 40, 16, 56, 4, 3), {"num_buckets": 12, "max_distance": 20}, 33),
        ((64, 128, 64, 96, 2, 2), {}, 150),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_output_equals_transformers_at_other_sizes(sizes, relative, length, masked):
    torch, model, config, state = torch_encoder(*sizes, **relative)
    rng = np.random.default_rng(length)
    ids = rng.integers(0, config.vocab_size, (2, length))
    mask = np.arange(length)[None, :] < np.array([[length], [length // 2 + 1]])
    with torch.no_grad():
        expected = model(
            torch.from_numpy(ids), attention_mask=torch.from_numpy(mask) if masked else None
        ).last_hidden_state.numpy()
    actual = encode(t5_from_torch(state, config), config, ids, mask if masked else None)
    assert_close(actual, expected)


@pytest.mark.parametrize(
    ("buckets", "distance"), [(32, 128), (8, 128), (12, 20), (64, 1000), (16, 17)]
)
def test_distance_buckets_equal_transformers(buckets, distance):
    torch = pytest.importorskip("torch")
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    positions = torch.arange(300)
    expected = t5.T5Attention._relative_position_bucket(
        positions[None, :] - positions[:, None],
        bidirectional=True, num_buckets=buckets, max_distance=distance,
    )  # fmt: skip
    np.testing.assert_array_equal(relative_buckets(300, buckets, distance), expected.numpy())


def test_masked_keys_do_not_change_the_other_outputs():
    params = random_params(TINY, 0)
    mask = jnp.arange(9)[None, :] < 6
    ids = jnp.arange(9)[None, :]
    changed = ids.at[0, 6:].set(39)
    first, second = (encode(params, TINY, each, mask) for each in (ids, changed))
    np.testing.assert_array_equal(first[:, :6], second[:, :6])


def test_initial_parameters_have_the_mesh_tensorflow_deviations():
    config = T5Config(
        vocab_size=400, width=96, kv_dim=16, heads=4, layers=3, mlp_width=160, relative_buckets=32
    )
    params = init(config, 1)
    expected = {
        "query": (96 * 16) ** -0.5,
        "key": 96**-0.5,
        "value": 96**-0.5,
        "out": 64**-0.5,
        "gate": 96**-0.5,
        "up": 96**-0.5,
        "down": 160**-0.5,
    }
    for name, deviation in expected.items():
        kernel = params["blocks"][name]["kernel"]
        assert np.std(kernel) == pytest.approx(deviation, rel=0.03), name
        assert not np.array_equal(kernel[0], kernel[1]), "layers must differ"
    assert np.std(params["token_embedding"]["embedding"]) == pytest.approx(1, rel=0.03)
    assert np.std(params["relative_bias"]["embedding"]) == pytest.approx(96**-0.5, rel=0.2)
    assert np.all(params["blocks"]["attention_norm"]["scale"] == 1)


def test_every_parameter_names_its_logical_axes_without_the_layer_axis():
    encoder = functional_encoder(TINY)
    known = {"embed", "heads", "heads_in", "mlp", "mlp_in", "vocab", None}
    is_axes = lambda node: isinstance(node, tuple)
    axes = jax.tree.leaves_with_path(encoder.axes, is_leaf=is_axes)
    leaves = jax.tree.leaves_with_path(encoder.abstract)
    for (path, names), (same_path, leaf) in zip(axes, leaves, strict=True):
        assert path == same_path
        assert set(names) <= known, path
        assert len(names) == leaf.ndim - (path[0].key == "blocks"), path


def test_bfloat16_compute_keeps_float32_parameters_and_stays_near_float32():
    params = random_params(TINY, 2)
    ids = jnp.arange(14).reshape(2, 7)
    half = dataclasses.replace(TINY, dtype="bfloat16")
    abstract = functional_encoder(half).abstract
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract)} == {jnp.dtype("float32")}
    out = encode(params, half, ids)
    assert out.dtype == jnp.bfloat16
    assert_close(out.astype(jnp.float32), encode(params, TINY, ids), tolerance=0.03)


def test_parameters_can_be_created_in_bfloat16():
    config = dataclasses.replace(TINY, param_dtype="bfloat16", dtype="bfloat16")
    params = random_params(config, 0)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    assert encode(params, config, np.zeros((1, 3), int)).dtype == jnp.bfloat16


def test_builds_and_runs_in_tree_mode():
    params = random_params(TINY, 5)
    with nnx.set_graph_mode(False), nnx.set_graph_updates(False):
        out = encode(params, TINY, np.arange(3)[None])
    np.testing.assert_array_equal(out, encode(params, TINY, np.arange(3)[None]))


def test_compiled_size_does_not_grow_with_depth():
    def lines(layers):
        encoder = functional_encoder(dataclasses.replace(TINY, layers=layers))
        run = jax.jit(lambda params, ids: encoder.bind(params)(ids))
        ids = jax.ShapeDtypeStruct((1, 4), jnp.int32)
        return len(run.lower(encoder.abstract, ids).as_text().splitlines())

    assert lines(2) == lines(9)


def test_gradients_reach_every_parameter():
    params = random_params(TINY, 3)
    ids = jnp.arange(16).reshape(2, 8)
    total = lambda params: jnp.sum(bind(params, TINY)(ids) ** 3)
    grads = jax.jit(jax.grad(total))(params)
    for path, grad in jax.tree.leaves_with_path(grads):
        assert np.all(np.isfinite(grad)) and np.any(grad != 0), path


def test_exported_weights_run_in_transformers():
    torch, model, config, _ = torch_encoder(40, 12, 6, 20, 3, 3)
    params = random_params(config, 4)
    state = {name: torch.from_numpy(a.copy()) for name, a in t5_to_torch(params, config).items()}
    result = model.load_state_dict(state, strict=False)
    assert result.unexpected_keys == []
    assert set(result.missing_keys) <= {"encoder.embed_tokens.weight"}
    ids = np.arange(10).reshape(2, 5)
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)).last_hidden_state.numpy()
    assert_close(encode(params, config, ids), expected)
