"""The SigLIP name table: bit for bit both ways, and errors that name the key."""

from __future__ import annotations

import json
import os
import pathlib

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from unialign_jax.convert.siglip_names import (
    abstract_parameters,
    siglip_config_from_json,
    siglip_from_torch,
    siglip_to_torch,
    table,
)
from unialign_jax.convert.tables import their_shapes
from unialign_jax.errors import UserError
from unialign_jax.models.teachers.siglip_config import SigLIPConfig, TextConfig, VisionConfig

ENCODER = pathlib.Path(__file__).parents[1] / "goldens" / "components" / "siglip"
POSITION_IDS = ("vision_model.embeddings.position_ids", "text_model.embeddings.position_ids")
# What google/siglip-so400m-patch14-384 says of itself; all else it leaves to the defaults.
PUBLISHED = {
    "model_type": "siglip",
    "text_config": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "model_type": "siglip_text_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
    },
    "vision_config": {
        "hidden_size": 1152,
        "image_size": 384,
        "intermediate_size": 4304,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
    },
}


def config_json():
    return json.loads((ENCODER / "config.json").read_text())


@pytest.fixture
def config() -> SigLIPConfig:
    return siglip_config_from_json(config_json())


@pytest.fixture
def state() -> dict[str, np.ndarray]:
    return load_file(ENCODER / "model.safetensors")


@pytest.fixture
def transformers():
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    pytest.importorskip("torch")
    return pytest.importorskip("transformers")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_round_trip_keeps_names_types_and_bits(config, state, dtype):
    state = {name: array.astype(dtype) for name, array in state.items()}
    back = siglip_to_torch(siglip_from_torch(state, config), config)
    assert set(back) == set(state)
    for name, array in state.items():
        assert back[name].dtype == array.dtype and back[name].flags.c_contiguous
        assert back[name].shape == array.shape
        assert back[name].tobytes() == array.tobytes(), name


def test_tree_has_the_leaves_and_shapes_of_the_module(config, state):
    shapes = lambda tree: jax.tree.map(lambda leaf: tuple(leaf.shape), tree)
    assert shapes(siglip_from_torch(state, config)) == shapes(abstract_parameters(config))


def test_one_array_of_the_pooling_attention_becomes_three_matrices(config, state):
    pool = siglip_from_torch(state, config)["image"]["pool"]
    weight = state["vision_model.head.attention.in_proj_weight"]
    bias = state["vision_model.head.attention.in_proj_bias"]
    for i in range(3):
        rows = slice(32 * i, 32 * (i + 1))
        np.testing.assert_array_equal(pool["qkv_kernel"][:, i], weight[rows].T)
        np.testing.assert_array_equal(pool["qkv_bias"][i], bias[rows])


def test_layers_are_stacked_in_their_order(config, state):
    kernel = siglip_from_torch(state, config)["text"]["blocks"]["mlp"]["up"]["kernel"]
    for i in range(2):
        theirs = state[f"text_model.encoder.layers.{i}.mlp.fc1.weight"]
        np.testing.assert_array_equal(kernel[i], theirs.T)


def test_position_ids_of_older_files_are_left_out(config, state):
    old = {name: np.arange(4)[None] for name in POSITION_IDS}
    assert jax.tree.all(
        jax.tree.map(
            np.array_equal, siglip_from_torch(state | old, config), siglip_from_torch(state, config)
        )
    )


def test_missing_unexpected_and_misshaped_names_are_listed_together(config, state):
    del state["vision_model.head.probe"]
    state["text_model.position_ids"] = np.zeros(16, np.int64)
    state["vision_model.head.attention.in_proj_weight"] = np.zeros((32, 96), np.float32)
    with pytest.raises(UserError) as caught:
        siglip_from_torch(state, config)
    message = str(caught.value)
    assert "missing vision_model.head.probe" in message
    assert "unexpected text_model.position_ids" in message
    assert "in_proj_weight is (32, 96), expected (96, 32)" in message


def test_tree_of_another_model_is_refused(config, state):
    params = siglip_from_torch(state, config)
    del params["image"]["pool"]["probe"]
    with pytest.raises(UserError, match="image/pool/probe"):
        siglip_to_torch(params, config)


def test_tree_of_another_depth_is_refused(config, state):
    params = siglip_from_torch(state, config)
    params["text"]["blocks"] = jax.tree.map(lambda leaf: leaf[:1], params["text"]["blocks"])
    with pytest.raises(UserError, match="text/blocks/.* its config needs"):
        siglip_to_torch(params, config)


def test_sizes_are_read_from_config_json(config):
    sizes = {"width": 32, "layers": 2, "heads": 2, "mlp_width": 48}
    assert config == SigLIPConfig(
        vision=VisionConfig(**sizes, image_size=28, patch_size=14),
        text=TextConfig(**sizes, vocab_size=64, positions=16),
    )


def test_defaults_are_the_published_so400m():
    assert siglip_config_from_json(PUBLISHED) == SigLIPConfig()


@pytest.mark.parametrize("config", [{}, PUBLISHED])
def test_sizes_that_a_file_leaves_out_are_those_of_transformers(transformers, config):
    full = transformers.SiglipConfig(**config).to_dict()
    assert siglip_config_from_json(config) == siglip_config_from_json(full)
    assert full["text_config"]["projection_size"] == siglip_config_from_json(config).features


def test_names_and_shapes_at_full_size_are_those_of_transformers(transformers):
    import torch

    with torch.device("meta"):
        model = transformers.SiglipModel(transformers.SiglipConfig(**PUBLISHED))
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    config = SigLIPConfig()
    assert their_shapes(table(config), abstract_parameters(config)) == expected


@pytest.mark.parametrize(
    ("part", "change", "named"),
    [
        (None, {"model_type": "siglip2"}, "json: model_type is 'siglip2'"),
        ("vision_config", {"model_type": "vit"}, "vision_config.model_type is 'vit'"),
        ("vision_config", {"hidden_act": "gelu"}, "vision_config.hidden_act is 'gelu'"),
        ("text_config", {"hidden_act": "gelu"}, "text_config.hidden_act is 'gelu'"),
        ("text_config", {"layer_norm_eps": 1e-5}, "text_config.layer_norm_eps is 1e-05"),
        ("vision_config", {"layer_norm_eps": 1e-5}, "vision_config.layer_norm_eps is 1e-05"),
        ("vision_config", {"vision_use_head": False}, "vision_config.vision_use_head is False"),
        ("vision_config", {"num_channels": 1}, "vision_config.num_channels is 1"),
        ("vision_config", {"image_size": [28, 14]}, r"vision_config.image_size is \[28, 14\]"),
        ("text_config", {"num_hidden_layers": 0}, "text_config.num_hidden_layers is 0"),
        ("text_config", {"projection_size": 48}, "text_config.projection_size is 48"),
        ("vision_config", {"num_attention_heads": 5}, "width 32 is not a multiple of heads 5"),
        ("vision_config", {"patch_size": 32}, "patch_size 32 is above image_size 28"),
    ],
)
def test_config_of_another_architecture_is_refused_by_key(part, change, named):
    config = config_json()
    (config if part is None else config[part]).update(change)
    with pytest.raises(UserError, match=named):
        siglip_config_from_json(config)


def test_compute_dtype_is_the_callers():
    assert siglip_config_from_json(config_json(), dtype="bfloat16").dtype == "bfloat16"
