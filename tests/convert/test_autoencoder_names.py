"""The autoencoder's name table: bit for bit both ways, and errors that name the key."""

from __future__ import annotations

import json
import pathlib

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from unialign_jax.convert import autoencoder_names as names
from unialign_jax.errors import UserError

FOLDER = pathlib.Path(__file__).parents[1] / "goldens" / "components" / "vae"
STATE = load_file(FOLDER / "diffusion_pytorch_model.safetensors")
JSON = json.loads((FOLDER / "config.json").read_text())
CONFIG = names.autoencoder_config_from_json(JSON)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_round_trip_keeps_names_types_and_bits(dtype) -> None:
    state = {name: array.astype(dtype) for name, array in STATE.items()}
    back = names.autoencoder_to_torch(names.autoencoder_from_torch(state, CONFIG), CONFIG)
    assert set(back) == set(state)
    for name, array in state.items():
        assert back[name].dtype == array.dtype and back[name].flags.c_contiguous
        assert back[name].tobytes() == array.tobytes(), name


def test_tree_has_the_leaves_and_shapes_of_the_module() -> None:
    shapes = lambda tree: jax.tree.map(lambda leaf: tuple(leaf.shape), tree)
    tree = names.autoencoder_from_torch(STATE, CONFIG)
    assert shapes(tree) == shapes(names.abstract_parameters(CONFIG))


def test_changing_one_leaf_changes_exactly_its_tensor() -> None:
    tree = names.autoencoder_from_torch(STATE, CONFIG)
    tree["decoder"]["level_1"]["block_2"]["conv_1"]["kernel"] += 1
    back = names.autoencoder_to_torch(tree, CONFIG)
    changed = [name for name in STATE if not np.array_equal(back[name], STATE[name])]
    assert changed == ["decoder.up_blocks.1.resnets.2.conv1.weight"]


def test_wrong_weights_are_listed() -> None:
    state = dict(STATE)
    state["quant_conv.weight"] = state.pop("encoder.conv_in.weight")
    state["encoder.conv_in.bias"] = np.zeros(3, np.float32)
    with pytest.raises(UserError) as caught:
        names.autoencoder_from_torch(state, CONFIG)
    for problem in (
        "missing encoder.conv_in.weight",
        "unexpected quant_conv.weight",
        "encoder.conv_in.bias is (3,), expected (8,)",
    ):
        assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"_class_name": "AutoencoderDC"}, "_class_name is 'AutoencoderDC'"),
        ({"use_quant_conv": True}, "use_quant_conv is True"),
        ({"use_post_quant_conv": None}, "use_post_quant_conv is None"),
        ({"act_fn": "gelu"}, "act_fn is 'gelu'"),
        ({"latents_mean": [0.0]}, "latents_mean"),
        ({"down_block_types": ["DownEncoderBlock2D"]}, "down_block_types"),
        ({"shift_factor": None}, "lacks shift_factor"),
        ({"block_out_channels": None}, "lacks block_out_channels"),
    ],
)
def test_config_of_another_autoencoder_is_refused_by_key(change, named) -> None:
    with pytest.raises(UserError, match=named):
        names.autoencoder_config_from_json(JSON | change)
