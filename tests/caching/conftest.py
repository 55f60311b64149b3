"""A small prepared world, copied for every test that writes beside it."""

from __future__ import annotations

import shutil

import pytest

from unialign_jax.data.prepare import PrepareOptions, prepare
from unialign_jax.data.prepared import Prepared
from unialign_jax.data.shards import StoreOptions
from unialign_jax.data.sources.scenes.source import ScenesSource, spread


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Five records of every training task (compose: 2 and 3), in two shards each, 16 pixels."""
    out = tmp_path_factory.mktemp("world") / "data"
    prepare(ScenesSource("demo", spread(25)), out, PrepareOptions(StoreOptions(shards=2)))
    return out


@pytest.fixture
def data(world, tmp_path):
    """The world, to write beside."""
    shutil.copytree(world, tmp_path / "data")
    return Prepared(tmp_path / "data")
