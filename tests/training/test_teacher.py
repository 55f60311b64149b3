"""The scenes teacher learns which caption belongs to which picture, the same way every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unialign_jax.caching.scenes_teacher import ScenesTeacher
from unialign_jax.data import images
from unialign_jax.data.prepare import PrepareOptions, prepare
from unialign_jax.data.prepared import Prepared
from unialign_jax.data.sources.scenes.source import ScenesSource
from unialign_jax.data.tasks import Task
from unialign_jax.errors import UserError
from unialign_jax.training.teacher import TeacherOptions, train_teacher

QUICK = TeacherOptions(steps=60, batch=48)
CANDIDATES = 32


def scenes(folder: Path, count: int, seed: int = 0, task: Task = Task.GENERATE) -> Prepared:
    prepare(ScenesSource("demo", {task: count}, seed=seed), folder, PrepareOptions())
    return Prepared(folder)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return scenes(tmp_path_factory.mktemp("scenes") / "data", 480)


@pytest.fixture(scope="module")
def teacher(data: Prepared) -> ScenesTeacher:
    return train_teacher(data, QUICK)


def test_it_finds_the_captions_of_scenes_that_it_has_not_seen(
    teacher: ScenesTeacher, tmp_path: Path
) -> None:
    source = scenes(tmp_path / "other", CANDIDATES, seed=1).source("generate")
    records = [source[index] for index in range(CANDIDATES)]
    pixels = np.stack([images.to_pixels(images.decode(record.target), 16) for record in records])
    image = unit(teacher.image_features(pixels))
    for wording in range(3):
        text = unit(teacher.text_features([record.captions[wording] for record in records]))
        nearest = np.argmax(image @ text.T, axis=1)
        # One in 32 by chance.
        assert np.mean(nearest == np.arange(CANDIDATES)) > 0.4


def test_it_says_how_well_it_does_on_records_held_apart(
    teacher: ScenesTeacher, data: Prepared
) -> None:
    said = teacher.training
    assert (said["records"], said["tested_on"]) == (416, 64)
    assert 0.3 < said["retrieval"] <= 1
    assert said["data"] == data.fingerprint
    assert said["steps"] == 60 and said["loss"] < 2


def test_the_same_call_makes_the_same_teacher(teacher: ScenesTeacher, data: Prepared) -> None:
    totals, counts = [], []
    again = train_teacher(data, QUICK, on_start=totals.append, advance=counts.append)
    assert again.fingerprint == teacher.fingerprint
    assert (totals, counts) == ([60], [1] * 60)


def test_sizes_follow_from_the_records(teacher: ScenesTeacher) -> None:
    assert (teacher.pixels, teacher.config.rows, teacher.config.features) == (16, 4, 64)
    assert teacher.text_length % 4 == 0
    assert teacher.config.vocab_size == teacher.tokenizer.vocab_size


def test_too_few_records_are_refused(tmp_path: Path) -> None:
    few = scenes(tmp_path / "few", 5)
    with pytest.raises(UserError, match="5 usable `generate` records .* from 8 or more"):
        train_teacher(few, QUICK)
    other = scenes(tmp_path / "other", 12, task=Task.EDIT)
    with pytest.raises(UserError, match="no `generate` records; it has edit"):
        train_teacher(other, QUICK)
