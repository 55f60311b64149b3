"""A run, its scores and what is gathered from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reporting.made_up import write_run, write_scores
from unialign_jax.reporting.material import Making, Material, gather


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `run/` and `scores/`; not to be written to."""
    folder = tmp_path_factory.mktemp("demo")
    write_run(folder)
    write_scores(folder)
    return folder


@pytest.fixture(scope="session")
def material(folder: Path) -> Material:
    making = Making("scenes:tiny", ("unialign prepare scenes --out <x>",), 444.0)
    return gather(folder / "run", folder / "scores", making)
