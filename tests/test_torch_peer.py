"""The PyTorch peer is the reference: it makes every stored golden again from its inputs."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.peer.golden import complete
from tests.peer.stored import GROUPS, find_goldens, read_inputs

torch = pytest.importorskip("torch")

TOLERANCE = 1e-5
# The last bit of a float32 exp depends on the processor, and a frequency off by a bit moves the
# features of a timestep of 1000 by up to 6e-5 rad (the goldens' README, "time").
LOOSE = {"tiny_transformer": 5e-5, "losses": 5e-5}
# Recorded diagnostics of float32 noise, not results.
NOISE = re.compile(r"float64|noise_floor")


@pytest.fixture(scope="module")
def root():
    root = find_goldens()
    if root is None:
        pytest.skip("no goldens beside the tests or the checkout")
    return root


@pytest.fixture(scope="module")
def inputs(root):
    return read_inputs(root)


@pytest.fixture(scope="module")
def made(inputs):
    return complete(inputs)


def stored_arrays(root, name):
    if name.endswith(".safetensors"):
        return load_file(root / name)
    with np.load(root / name) as file:
        return {key: file[key] for key in file.files}


def assert_close(actual, expected, where, tolerance=TOLERANCE):
    actual = np.asarray(actual)
    assert actual.dtype == expected.dtype and actual.shape == expected.shape, where
    if expected.dtype.kind in "bi":
        np.testing.assert_array_equal(actual, expected, err_msg=where)
        return
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(actual[~finite], expected[~finite], err_msg=where)
    # Stand-ins for minus infinity would hide the rest behind their peak.
    real = finite & (np.abs(expected) < 1e5)
    for chosen in (real, finite & ~real):
        if chosen.any():
            error = np.max(np.abs(actual[chosen] - expected[chosen]))
            assert error <= tolerance * np.max(np.abs(expected[chosen])), (where, error)


def assert_same_json(actual, expected, where):
    if isinstance(expected, dict):
        keys = {key for key in expected if not NOISE.search(key)}
        assert keys == {key for key in actual if not NOISE.search(key)}, where
        for key in keys:
            assert_same_json(actual[key], expected[key], f"{where}/{key}")
    elif isinstance(expected, list):
        assert len(actual) == len(expected), where
        for index, pair in enumerate(zip(actual, expected, strict=True)):
            assert_same_json(*pair, f"{where}/{index}")
    elif isinstance(expected, float) and not isinstance(expected, bool):
        # A margin is a difference of nearly equal scores.
        tolerance = 1e-2 if "margin" in where else TOLERANCE
        assert actual == pytest.approx(expected, rel=tolerance), where
    else:
        assert actual == expected, where


def names(root, prefix, suffixes):
    inventory = json.loads((root / "inventory.json").read_text())
    return [name for name in inventory if name.startswith(prefix) and name.endswith(suffixes)]


def test_state_dict_names_are_the_reference_s_to_the_last(inputs):
    assert set(inputs.model().state_dict()) == set(inputs.state)


@pytest.mark.parametrize("group", GROUPS)
def test_every_array_of_a_group_is_made_again(root, made, group):
    for name in names(root, f"{group}/", (".npz", ".safetensors")):
        expected = stored_arrays(root, name)
        assert set(made[name]) == set(expected), name
        for key, array in expected.items():
            tolerance = LOOSE.get(group, TOLERANCE)
            assert_close(made[name][key], array, f"{name}:{key}", tolerance)


@pytest.mark.parametrize("group", GROUPS)
def test_every_recorded_value_of_a_group_is_made_again(root, made, group):
    for name in names(root, f"{group}/", (".json",)):
        if not NOISE.search(name):
            expected = json.loads((root / name).read_text())
            assert_same_json(made[name], expected, name)


def test_files_are_those_of_the_inventory(root, made):
    groups = {name.split("/")[0] for name in made}
    stored = {name for group in groups for name in names(root, f"{group}/", ("",))}
    assert stored == set(made)
