"""Topologies by name, and what a wrong one is answered with."""

from __future__ import annotations

import importlib.util

import pytest

from unialign_jax.errors import UsageError, UserError
from unialign_jax.planning import topology


@pytest.mark.parametrize(
    ("name", "slices", "chips", "devices"),
    [
        ("v5e:16x16", 1, 256, 256),
        ("v6e:16x16", 1, 256, 256),
        ("v5p:4x4x4", 1, 64, 64),
        ("v5p:8x8x8", 2, 1024, 1024),
        ("tpu7x:4x4x4", 1, 64, 128),
        ("gpu:h200", 1, 1, 1),
        ("gpu:h100:8", 1, 8, 8),
    ],
)
def test_chips_and_devices(name, slices, chips, devices):
    found = topology.parse(name, slices)
    assert (found.chips, found.devices) == (chips, devices)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("v5e:16x17x2", "v5e:16x16"),
        ("v5p:4x4", "v5p:4x4x"),
        ("v5e16x16", "v5e:16x16"),
        ("gpu:h300", "gpu:h200"),
    ],
)
def test_an_unknown_topology_names_the_nearest(name, nearest):
    with pytest.raises(UsageError, match=f"the nearest is {nearest}"):
        topology.parse(name)


def test_slices_are_at_least_one():
    with pytest.raises(UsageError, match="at least 1"):
        topology.parse("v5e:2x2", 0)


def test_without_libtpu_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'unialign-jax\[plan\]'"):
        topology.devices(topology.parse("v5e:2x2"))


def test_libtpu_describes_a_slice():
    pytest.importorskip("libtpu")
    found = topology.devices(topology.parse("v5e:2x2"))
    assert [device.platform for device in found] == ["tpu"] * 4
    assert {device.device_kind for device in found} == {"TPU v5 lite"}
