"""Folders in the published layout, put together from the goldens' tiny components."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from unialign_jax.bundle.read import Bundle
from unialign_jax.convert.recognise import recognise
from unialign_jax.convert.to_jax import to_jax
from unialign_jax.data.tokenizer import train_tokenizer

GOLDENS = Path(__file__).parents[1] / "goldens"
CAPTIONS = ["a cat on a chair", "two dogs and a red ball", "a cup of coffee", "the moon at night"]
VOCABULARY = 128
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
ENCODER = "text_encoder/model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
FILES = (TRANSFORMER, ENCODER, VAE)


def make_published(folder: Path) -> Path:
    """A whole model: transformer, text encoder, autoencoder, tokenizer, scheduler."""
    for name, source in (
        ("transformer", GOLDENS / "e2e/transformer"),
        ("text_encoder", GOLDENS / "components/t5_encoder"),
        ("vae", GOLDENS / "components/vae"),
    ):
        shutil.copytree(source, folder / name)
    (folder / "tokenizer").mkdir()
    train_tokenizer(CAPTIONS, VOCABULARY).save(folder / "tokenizer/tokenizer.json")
    write(folder / "scheduler/scheduler_config.json", {"shift": 3.0})
    write(folder / "model_index.json", {"_class_name": "UniAlignmentPipeline"})
    return folder


def write(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def converted(
    source: Path, destination: Path, *, sizes: Any = None, seed: int = 0, **options
) -> Bundle:
    found = recognise(source, sizes=sizes, seed=seed)
    to_jax(found, destination, source=source.name, **options)
    return Bundle(destination)


def change(path: Path, edit) -> dict[str, np.ndarray]:
    """Rewrites a weight file with a change."""
    state = load_file(path)
    state = edit(state) or state
    save_file({name: np.ascontiguousarray(array) for name, array in state.items()}, path)
    return state


def equal(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> list[str]:
    """The names whose tensors differ in a bit, a shape or a dtype."""
    return sorted(
        name
        for name in left.keys() | right.keys()
        if name not in left
        or name not in right
        or left[name].dtype != right[name].dtype
        or left[name].shape != right[name].shape
        or left[name].tobytes() != right[name].tobytes()
    )


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder; not to be changed."""
    return make_published(tmp_path_factory.mktemp("published") / "UniAlignment")


@pytest.fixture
def published(original: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(original, tmp_path / "UniAlignment"))
