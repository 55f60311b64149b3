"""Every field of the network's config has its place: size, switch of the weights, or setting."""

from __future__ import annotations

import dataclasses

import jax
import pytest

from unialign_jax.models.functional import build
from unialign_jax.models.mmdit import MMDiT
from unialign_jax.models.mmdit_config import MMDiTConfig
from unialign_jax.models.switches import SETTINGS, SIZES, WEIGHT_SWITCHES, weight_switches

SMALL = MMDiTConfig(
    width=16,
    heads=2,
    layers=2,
    patch_size=2,
    channels=3,
    text_width=8,
    vocab_size=12,
    sample_size=8,
    position_table_size=8,
    null_image_tokens=2,
    adapter_hidden=8,
    adapter_out=8,
)


def shapes(config: MMDiTConfig):
    abstract = build(lambda rngs: MMDiT(config, rngs)).abstract
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), abstract)


def test_every_field_stands_in_exactly_one_table():
    placed = [*SIZES, *WEIGHT_SWITCHES, *SETTINGS]
    assert sorted(placed) == sorted(field.name for field in dataclasses.fields(MMDiTConfig))


def test_the_defaults_are_the_references_and_no_switch_is_set():
    defaults = MMDiTConfig()
    assert {name: getattr(defaults, name) for name in WEIGHT_SWITCHES} == WEIGHT_SWITCHES
    assert weight_switches(defaults) == {}


def test_a_switch_that_is_set_is_named_with_its_value():
    config = dataclasses.replace(SMALL, text_positions=5, prediction="image", dtype="bfloat16")
    assert weight_switches(config) == {"text_positions": 5, "prediction": "image"}


@pytest.mark.parametrize(
    "setting",
    [
        {"positions_std": 1.0},
        {"rotary_bias": 2.0},
        {"initial_gates": 1.0},
        {"time_features_float16": True},
        {"dtype": "bfloat16"},
        {"remat": "full"},
        {"unroll": True},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_a_setting_leaves_names_and_shapes_as_they_were(setting):
    assert set(setting) <= set(SETTINGS)
    assert shapes(dataclasses.replace(SMALL, **setting)) == shapes(SMALL)


@pytest.mark.parametrize(
    "switch",
    [
        {"stem_channels": 4},
        {"detail_channels": 4},
        {"text_positions": 5},
        {"condition_segments": True},
        {"qk_norm": True},
    ],
)
def test_a_switch_that_adds_parameters_is_in_the_table(switch):
    assert set(switch) <= set(WEIGHT_SWITCHES)
    assert shapes(dataclasses.replace(SMALL, **switch)) != shapes(SMALL)
