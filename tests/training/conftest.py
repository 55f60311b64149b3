"""A prepared data set of photographs and the tiny config over it, made once per session."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from unialign_jax import config as configs
from unialign_jax.data.prepare import PrepareOptions, prepare
from unialign_jax.data.sources.jsonl_source import JsonlSource
from unialign_jax.data.sources.photos import write_photos

TINY = Path(__file__).parent / "tiny_config.py"


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scikit-image's photographs with captions and edits, prepared with a small tokenizer."""
    pytest.importorskip("skimage")
    folder = tmp_path_factory.mktemp("photos")
    lines = write_photos(folder / "raw", size=32, edits=1)
    prepare(JsonlSource(lines), folder / "data", PrepareOptions(train_tokenizer=256))
    return folder / "data"


@pytest.fixture
def tiny(photos: Path) -> dict[str, Any]:
    """The tiny config over the photographs, as nested dicts."""
    return configs.to_plain(configs.load_config(str(TINY), [f"--config.data.path={photos}"]))


@pytest.fixture(scope="session", autouse=True)
def compiled(tmp_path_factory: pytest.TempPathFactory):
    """One cache of compiled programs for all tests here, away from the user's."""
    before = os.environ.get("UNIALIGN_COMPILATION_CACHE")
    os.environ["UNIALIGN_COMPILATION_CACHE"] = str(tmp_path_factory.mktemp("compiled"))
    yield
    if before is None:
        del os.environ["UNIALIGN_COMPILATION_CACHE"]
    else:
        os.environ["UNIALIGN_COMPILATION_CACHE"] = before
