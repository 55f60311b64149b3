"""A run directory with random weights, written by the code that training uses."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from unialign_jax.data.tokenizer import train_tokenizer
from unialign_jax.sampling.pipeline import Pipeline
from unialign_jax.training.checkpoints import Checkpoints
from unialign_jax.training.run_directory import RunDirectory
from unialign_jax.training.setup import make_setup

SIZE, LENGTH, VOCABULARY, STEP = 16, 24, 256, 7

CONFIG: dict[str, Any] = {
    "seed": 0,
    "model": {
        "width": 32,
        "heads": 2,
        "layers": 2,
        "patch_size": 4,
        "channels": 3,
        "text_width": 16,
        "vocab_size": VOCABULARY,
        "sample_size": SIZE,
        "position_table_size": 8,
        "adapter_hidden": 8,
        "adapter_out": 8,
        "text_positions": LENGTH,
    },
    "text_encoder": {
        "vocab_size": VOCABULARY,
        "width": 16,
        "kv_dim": 8,
        "heads": 2,
        "layers": 1,
        "mlp_width": 32,
        "relative_buckets": 8,
        "train": False,
    },
    "objective": {"align_depth": 1},
    "data": {"path": "nowhere", "image_size": SIZE, "text_length": LENGTH},
    "train": {"steps": 8, "global_batch": 8},
    "optimizer": {},
    "ema": {"decay": 0.99},
    "checkpoint": {"every_steps": 2, "keep": 2},
    "mesh": {"data": -1, "fsdp": 1, "context": 1, "tensor": 1},
    "sample": {"steps": 3, "guidance": 2.0, "text_steps": 6},
}

CAPTIONS = ["a cat on a chair", "two dogs and a red ball", "a cup of coffee", "the moon at night"]


def random_state(abstract: Any) -> Any:
    """A train state of random numbers: fresh weights would have heads that predict nothing."""
    rng = np.random.default_rng(0)

    def leaf(struct: Any) -> Any:
        values = (0.3 * rng.normal(size=struct.shape)).astype(struct.dtype)
        return jax.device_put(values, struct.sharding)

    return jax.tree.map(leaf, abstract)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory, with a moving average that differs from the weights."""
    folder = tmp_path_factory.mktemp("run")
    tokenizer = train_tokenizer(CAPTIONS, VOCABULARY)
    tokenizer.save(folder / "trained.json")
    config = copy.deepcopy(CONFIG)
    setup = make_setup(config, tokenizer, jax.devices()[:1])
    directory = RunDirectory(folder / "run")
    directory.create(config, folder / "trained.json")
    checkpoints = Checkpoints(directory.checkpoints)
    checkpoints.save(random_state(setup.abstract), STEP, config, {"next_step": STEP})
    checkpoints.close()
    return directory.path


@pytest.fixture(scope="session")
def pipe(run: Path) -> Pipeline:
    """Loaded once: what it compiles is shared by the tests."""
    return Pipeline.from_pretrained(run)


def photograph(seed: int, height: int = 20, width: int = 30) -> Image.Image:
    """Noise as a picture."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="session")
def photos() -> list[Image.Image]:
    return [photograph(seed) for seed in range(4)]


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
