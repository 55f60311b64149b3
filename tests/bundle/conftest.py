"""A bundle with random weights, made from a run directory by the code that users call."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

# The run and its pipeline; pytest finds fixtures by the names in a conftest.
from tests.sampling.conftest import STEP, compiled, pipe, run
from unialign_jax.sampling.bundling import bundle_run

__all__ = ["STEP", "bundle", "compiled", "copy", "pipe", "run"]


@pytest.fixture(scope="session")
def bundle(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle, in float32; not to be changed."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    bundle_run(run, path)
    return path


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(bundle, tmp_path / "copy"))
