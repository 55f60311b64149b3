"""Training on cached features: the intrinsic-modal losses appear, and fall."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import jax
import pytest

from tests.caching.stand_in_teacher import StandInTeacher
from unialign_jax.caching.parts import CacheOptions
from unialign_jax.caching.writer import write_cache
from unialign_jax.data.pipeline import TrainIterator, make_iterator
from unialign_jax.data.prepared import Prepared
from unialign_jax.data.tokenizer import TextTokenizer
from unialign_jax.errors import UserError
from unialign_jax.training.programs import Programs, lower, place_batch
from unialign_jax.training.setup import Setup, make_setup

STEPS = 30


@pytest.fixture(scope="module")
def cached(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photographs with features `pooled` and `grid` of 8 channels, and `narrow` of 4."""
    folder = tmp_path_factory.mktemp("cached") / "data"
    shutil.copytree(photos, folder)
    data = Prepared(folder)
    write_cache(data, StandInTeacher(repeats=2), "pooled", CacheOptions())
    write_cache(data, StandInTeacher(repeats=2), "grid", CacheOptions(grid=True))
    write_cache(data, StandInTeacher(), "narrow", CacheOptions())
    return folder


@pytest.fixture
def config(tiny: dict[str, Any], cached: Path) -> dict[str, Any]:
    """The tiny config on one device, with the pooled features."""
    tiny["data"] |= {"path": str(cached), "features": "pooled", "mixture": {"generate": 1.0}}
    tiny["optimizer"]["learning_rate"] = 1e-2
    return tiny


def start(config: dict[str, Any]) -> tuple[Setup, TrainIterator]:
    """The parts of a run on one device, and its input."""
    tokenizer = TextTokenizer.from_file(Path(config["data"]["path"]) / "tokenizer.json")
    setup = make_setup(config, tokenizer, jax.devices()[:1])
    rows = setup.train.global_batch
    return setup, make_iterator(setup.data, seed=0, start_step=0, global_batch=rows)


def names_of(config: dict[str, Any]) -> set[str]:
    """What is logged of a step, which is traced and not run."""
    setup, batches = start(config)
    with jax.set_mesh(setup.mesh), batches:
        _, task, batch = next(batches)
        return set(lower(setup, str(task), place_batch(batch, setup)).out_info[1])


def test_the_losses_of_both_branches_are_reported_and_fall(config: dict[str, Any]) -> None:
    setup, batches = start(config)
    programs, state = Programs(setup), setup.init()
    found = []
    with jax.set_mesh(setup.mesh), batches:
        for _ in range(STEPS):
            _, task, batch = next(batches)
            batch = place_batch(batch, setup)
            state, scalars = programs.get(str(task), batch)[0](state, batch)
            found.append({name: float(value) for name, value in scalars.items()})
    for name in ("loss/align_image", "loss/align_text"):
        values = [line[name] for line in found]
        assert all(0 <= value <= 2 for value in values)
        assert values[0] > 0.2
        assert sum(values[-5:]) < 0.5 * sum(values[:5]), name
    weights = {"image": 1, "text": 0.2, "contrastive": 0.05, "align_image": 0.1, "align_text": 0.1}
    for line in found:
        total = sum(weight * line[f"loss/{term}"] for term, weight in weights.items())
        assert math.isclose(line["loss"], total, rel_tol=1e-4)


def test_a_grid_aligns_token_by_token(config: dict[str, Any]) -> None:
    config["data"]["features"] = "grid"
    config["objective"]["image_alignment"] = "tokens"
    assert {"loss/align_image", "loss/align_text"} <= names_of(config)


def test_without_features_there_are_no_such_losses(config: dict[str, Any]) -> None:
    config["data"]["features"] = ""
    names = names_of(config)
    assert "loss/image" in names and not {"loss/align_image", "loss/align_text"} & names


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"features": "narrow"},
            "model.adapter_out is 8, but the image features in .*/narrow have 4 channels: set "
            "model.adapter_out to 4",
        ),
        (
            {"features": "grid"},
            "objective.image_alignment is 'pooled', but the features in .*/grid were made with "
            "--grid: set objective.image_alignment to 'tokens', or run `unialign cache` without",
        ),
        ({"features": "poled"}, "no features of that name; there are grid, narrow, pooled"),
    ],
)
def test_features_that_the_model_cannot_use_are_refused(
    config: dict[str, Any], cached: Path, changes: dict[str, str], said: str
) -> None:
    config["data"] |= changes
    with pytest.raises(UserError, match=said):
        make_setup(config, TextTokenizer.from_file(cached / "tokenizer.json"))


def test_a_config_can_be_described_before_its_features_are_there(
    config: dict[str, Any], tmp_path: Path
) -> None:
    config["data"]["path"] = str(tmp_path / "later")
    assert make_setup(config, None).data.features == "pooled"
