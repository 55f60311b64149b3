"""The T5 name table: bit for bit both ways, and errors that name the key."""

from __future__ import annotations

import json
import pathlib

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from unialign_jax.convert.t5_names import t5_config_from_json, t5_from_torch, t5_to_torch
from unialign_jax.errors import UserError
from unialign_jax.models.t5 import T5Config, T5Encoder

ENCODER = pathlib.Path(__file__).parents[1] / "goldens" / "components" / "t5_encoder"
BIAS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"


@pytest.fixture
def config() -> T5Config:
    return t5_config_from_json(json.loads((ENCODER / "config.json").read_text()))


@pytest.fixture
def state() -> dict[str, np.ndarray]:
    return load_file(ENCODER / "model.safetensors")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_round_trip_keeps_names_types_and_bits(config, state, dtype):
    state = {name: array.astype(dtype) for name, array in state.items()}
    back = t5_to_torch(t5_from_torch(state, config), config)
    assert set(back) == set(state)
    for name, array in state.items():
        assert back[name].dtype == array.dtype and back[name].flags.c_contiguous
        assert back[name].tobytes() == array.tobytes(), name


def test_tree_has_the_leaves_and_shapes_of_the_module(config, state):
    model = nnx.eval_shape(lambda: T5Encoder(config, nnx.Rngs(0)))
    expected = nnx.to_pure_dict(nnx.state(model))
    shapes = lambda tree: jax.tree.map(lambda leaf: tuple(leaf.shape), tree)
    assert shapes(t5_from_torch(state, config)) == shapes(expected)


def test_token_table_is_read_under_either_or_both_names(config, state):
    table = state.pop("shared.weight")
    alone = t5_from_torch(state | {"encoder.embed_tokens.weight": table}, config)
    both = t5_from_torch(
        state | {"encoder.embed_tokens.weight": table, "shared.weight": table}, config
    )
    for tree in (alone, both):
        np.testing.assert_array_equal(tree["token_embedding"]["embedding"], table)


def test_two_different_token_tables_are_refused(config, state):
    state["encoder.embed_tokens.weight"] = state["shared.weight"] + 1
    with pytest.raises(UserError, match="differ"):
        t5_from_torch(state, config)


def test_missing_unexpected_and_misshaped_names_are_listed_together(config, state):
    del state[BIAS]
    state["decoder.final_layer_norm.weight"] = np.zeros(24, np.float32)
    state["encoder.final_layer_norm.weight"] = np.zeros(25, np.float32)
    with pytest.raises(UserError) as caught:
        t5_from_torch(state, config)
    message = str(caught.value)
    assert f"missing {BIAS}" in message
    assert "unexpected decoder.final_layer_norm.weight" in message
    assert "encoder.final_layer_norm.weight is (25,), expected (24,)" in message


def test_a_long_list_of_problems_is_cut(config):
    with pytest.raises(UserError, match="and 18 more"):
        t5_from_torch({}, config)


def test_tree_of_another_model_is_refused(config, state):
    params = t5_from_torch(state, config)
    del params["final_norm"]
    with pytest.raises(UserError, match="final_norm/scale"):
        t5_to_torch(params, config)


def test_tree_of_another_depth_is_refused(config, state):
    params = t5_from_torch(state, config)
    params["blocks"]["query"]["kernel"] = params["blocks"]["query"]["kernel"][:2]
    with pytest.raises(
        UserError,
        match=r"blocks/query/kernel of the text encoder is \(2, 24, 32\), .* needs \(3, 24, 32\)",
    ):
        t5_to_torch(params, config)


def test_sizes_are_read_from_config_json(config):
    assert config == T5Config(
        vocab_size=128, width=24, kv_dim=8, heads=4, layers=3, mlp_width=40
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"feed_forward_proj": "relu"}, "feed_forward_proj is 'relu'"),
        ({"model_type": "umt5"}, "model_type is 'umt5'"),
        ({"layer_norm_epsilon": 1e-5}, "layer_norm_epsilon is 1e-05"),
        ({"d_kv": None}, "lacks d_kv"),
    ],
)
def test_config_of_another_architecture_is_refused_by_key(change, named):
    config = json.loads((ENCODER / "config.json").read_text()) | change
    config = {key: value for key, value in config.items() if value is not None}
    with pytest.raises(UserError, match=named):
        t5_config_from_json(config)
