"""The name table of Qwen2.5-VL's vision tower: bit for bit both ways, errors that name the key."""

from __future__ import annotations

import json
import os
import pathlib

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from unialign_jax.convert import qwen_names, tables
from unialign_jax.convert.qwen_names import (
    qwen_vision_config_from_json,
    qwen_vision_from_torch,
    qwen_vision_to_torch,
    strip_prefix,
)
from unialign_jax.errors import UserError
from unialign_jax.models.functional import count_parameters
from unialign_jax.models.teachers.qwen_layout import QwenVisionConfig

TOWER = pathlib.Path(__file__).parents[1] / "goldens" / "components" / "qwen_vision"
PATCH = "patch_embed.proj.weight"


@pytest.fixture
def json_config() -> dict:
    return json.loads((TOWER / "config.json").read_text())


@pytest.fixture
def config(json_config) -> QwenVisionConfig:
    return qwen_vision_config_from_json(json_config)


@pytest.fixture
def state() -> dict[str, np.ndarray]:
    return load_file(TOWER / "model.safetensors")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_round_trip_keeps_names_types_and_bits(config, state, dtype):
    state = {name: array.astype(dtype) for name, array in state.items()}
    back = qwen_vision_to_torch(qwen_vision_from_torch(state, config), config)
    assert set(back) == set(state)
    for name, array in state.items():
        assert back[name].dtype == array.dtype and back[name].flags.c_contiguous
        assert back[name].tobytes() == array.tobytes(), name


def test_tree_has_the_leaves_and_shapes_of_the_module(config, state):
    shapes = lambda tree: jax.tree.map(lambda leaf: tuple(leaf.shape), tree)
    ours = qwen_vision_from_torch(state, config)
    assert shapes(ours) == shapes(qwen_names.build(config).abstract)


def test_names_and_shapes_at_full_width_are_those_of_transformers():
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("transformers.models.qwen2_5_vl.modeling_qwen2_5_vl")
    settings = pytest.importorskip("transformers.models.qwen2_5_vl.configuration_qwen2_5_vl")
    with torch.device("meta"):
        model = theirs.Qwen2_5_VisionTransformerPretrainedModel(
            settings.Qwen2_5_VLVisionConfig(hidden_size=1280, depth=2)
        )
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    config = QwenVisionConfig(depth=2)
    abstract = qwen_names.build(config).abstract
    assert tables.their_shapes(qwen_names.table(config), abstract) == expected
    assert count_parameters(abstract) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("prefix", ["", "visual.", "model.visual."])
def test_the_tower_is_found_in_a_whole_model(config, state, prefix):
    whole = {prefix + name: array for name, array in state.items()}
    if prefix:
        whole |= {"lm_head.weight": np.zeros(3), "model.layers.0.mlp.up_proj.weight": np.zeros(3)}
    found, which = strip_prefix(whole)
    assert which == prefix and set(found) == set(state)
    expected = qwen_vision_from_torch(state, config)
    jax.tree.map(np.testing.assert_array_equal, qwen_vision_from_torch(whole, config), expected)


@pytest.mark.parametrize("prefix", ["", "visual."])
def test_missing_unexpected_and_misshaped_names_are_listed_together(config, state, prefix):
    del state[PATCH]
    state["merger.mlp.1.weight"] = np.zeros(4, np.float32)
    state["merger.ln_q.weight"] = np.zeros(33, np.float32)
    with pytest.raises(UserError) as caught:
        qwen_vision_from_torch({prefix + name: array for name, array in state.items()}, config)
    message = str(caught.value)
    assert "Qwen2.5-VL vision tower" in message
    assert f"missing {PATCH}" in message
    assert "unexpected merger.mlp.1.weight" in message
    assert "merger.ln_q.weight is (33,), expected (32,)" in message


def test_a_flattened_patch_projection_is_refused(config, state):
    state[PATCH] = state[PATCH].reshape(32, -1)
    with pytest.raises(UserError, match=r"is \(32, 1176\), expected \(32, 3, 2, 14, 14\)"):
        qwen_vision_from_torch(state, config)


def test_tree_of_another_model_is_refused(config, state):
    params = qwen_vision_from_torch(state, config)
    del params["merger"]["norm"]
    with pytest.raises(UserError, match="merger/norm/scale"):
        qwen_vision_to_torch(params, config)


def test_tree_of_another_depth_is_refused(config, state):
    params = qwen_vision_from_torch(state, config)
    params["blocks"]["up"]["kernel"] = params["blocks"]["up"]["kernel"][:3]
    with pytest.raises(UserError, match=r"blocks/up/kernel .* is \(3, 32, 48\)"):
        qwen_vision_to_torch(params, config)


def test_sizes_are_read_from_config_json(config):
    assert config == QwenVisionConfig(
        depth=4, width=32, heads=2, mlp_width=48, out_width=48, window=56, full_blocks=(1, 3)
    )


def test_the_tower_s_sizes_are_read_from_a_whole_model_s_config():
    # The keys of the published 7B, which writes the channels under another name.
    vision = {
        "depth": 32, "hidden_act": "silu", "hidden_size": 1280, "intermediate_size": 3420,
        "num_heads": 16, "in_chans": 3, "out_hidden_size": 3584, "patch_size": 14,
        "spatial_merge_size": 2, "spatial_patch_size": 14, "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2, "temporal_patch_size": 2,
    }  # fmt: skip
    whole = {"model_type": "qwen2_5_vl", "hidden_act": "gelu", "vision_config": vision}
    config = qwen_vision_config_from_json(whole, dtype="bfloat16", param_dtype="bfloat16")
    assert config == QwenVisionConfig(dtype="bfloat16", param_dtype="bfloat16")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "qwen2_vl"}, "model_type is 'qwen2_vl'"),
        ({"hidden_act": "quick_gelu"}, "hidden_act is 'quick_gelu'"),
        ({"in_channels": 1}, "in_channels is 1"),
        ({"rope_parameters": {"rope_theta": 5e5}}, "rope_theta is 500000.0"),
        ({"window_size": None}, "lacks window_size"),
        ({"fullatt_block_indexes": None}, "lacks fullatt_block_indexes"),
        ({"num_heads": 3}, "width 32 is not a multiple of 4 x 3 heads"),
    ],
)
def test_config_of_another_architecture_is_refused_by_key(json_config, change, named):
    changed = {key: value for key, value in (json_config | change).items() if value is not None}
    with pytest.raises(UserError, match=named):
        qwen_vision_config_from_json(changed)


def test_config_of_another_whole_model_is_refused(json_config):
    with pytest.raises(UserError, match="model_type is 'qwen2_vl'"):
        qwen_vision_config_from_json({"model_type": "qwen2_vl", "vision_config": json_config})
