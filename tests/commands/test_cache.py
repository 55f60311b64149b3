"""`unialign cache`: a teacher and its features in one call, kept by the next one."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest

from unialign_jax import cli
from unialign_jax.caching import parts
from unialign_jax.caching.scenes_teacher import ScenesTeacher
from unialign_jax.data.features import FeatureCache
from unialign_jax.data.prepare import PrepareOptions, prepare
from unialign_jax.data.prepared import Prepared
from unialign_jax.data.sources.scenes.source import ScenesSource, spread
from unialign_jax.training import teacher


@pytest.fixture
def data(tmp_path):
    """Ten scenes of every training task."""
    prepare(ScenesSource("demo", spread(50)), tmp_path / "data", PrepareOptions())
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def brief(monkeypatch, tmp_path_factory):
    """Two steps of training, and compiled programs in a folder of the tests."""
    quick = functools.partial(teacher.TeacherOptions, steps=2, batch=4)
    monkeypatch.setattr(teacher, "TeacherOptions", quick)
    folder = tmp_path_factory.getbasetemp() / "compiled"
    monkeypatch.setenv("UNIALIGN_COMPILATION_CACHE", str(folder))


def call(data, *more):
    return cli.main(["cache", "--data", str(data), "--teacher", "scenes", "--batch", "4", *more])


def files(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_one_call_trains_a_teacher_and_caches_its_features(data, capsys):
    assert call(data) == 0
    said = capsys.readouterr().out
    assert "teacher: trained on 8 records in " in said
    assert f"{data / 'teacher'}; finds the caption of " in said
    assert "10 generate, 10 edit, 10 perceive, 5 compose_1, 5 compose_2, 120 captions" in said
    assert "(5 parts written, 0 already there)" in said
    cache = FeatureCache(Prepared(data), "scenes")
    assert (cache.image_shape, cache.dtype) == ((64,), "float16")
    features = cache.source("edit").get(3, 2)
    record = Prepared(data).source("edit")[3]
    own = ScenesTeacher.load(data / "teacher").text_features([record.captions[2]] * 4)[0]
    np.testing.assert_allclose(features[1], own, rtol=2e-3, atol=1e-4)

    before = files(data)
    assert call(data) == 0
    said = capsys.readouterr().out
    assert f"teacher: {data / 'teacher'}" in said
    assert "(0 parts written, 5 already there)" in said
    assert files(data) == before

    # Another seed is another teacher, for which there is a place of its own or --overwrite.
    assert call(data, "--seed", "5") == 1
    assert "trained with another --seed" in capsys.readouterr().err
    assert call(data, "--seed", "5", "--overwrite") == 0
    assert json.loads((data / "teacher" / "teacher.json").read_text())["training"]["seed"] == 5
    assert "(5 parts written, 0 already there)" in capsys.readouterr().out


def test_a_grid_has_a_name_of_its_own_and_a_teacher_may_be_shared(data, tmp_path, capsys):
    place = ["--teacher-dir", str(tmp_path / "shared")]
    assert call(data, "--grid", "--dtype", "float32", *place) == 0
    assert "images 4 x 4 x 64, captions 64, float32" in capsys.readouterr().out
    cache = FeatureCache(Prepared(data), "scenes_grid")
    assert (cache.image_shape, cache.dtype) == ((4, 4, 64), "float32")
    assert not (data / "teacher").exists()
    # A teacher that is named is taken as it is, whatever it was trained with.
    assert call(data, "--name", "pooled", "--seed", "3", *place) == 0
    assert "trained on" not in capsys.readouterr().out
    pooled = FeatureCache(Prepared(data), "pooled").source("generate").get(7)[0]
    grid = cache.source("generate").get(7)[0]
    np.testing.assert_allclose(pooled, grid.mean((0, 1)), rtol=2e-3, atol=1e-4)


def test_a_dry_run_writes_nothing(data, capsys):
    before = files(data)
    assert call(data, "--dry-run") == 0
    said = capsys.readouterr().out
    assert f"teacher: {data / 'teacher'}, to be trained" in said
    assert "10 generate, 10 edit, 10 perceive, 5 compose_1, 5 compose_2 in 5 parts" in said
    assert files(data) == before


def test_ctrl_c_says_that_the_same_command_continues(data, monkeypatch, capsys):
    original = parts.compute

    def interrupt(cache, job, *more):
        if job.stream == "edit":
            raise KeyboardInterrupt
        return original(cache, job, *more)

    monkeypatch.setattr(parts, "compute", interrupt)
    assert call(data) == 75
    assert "the same command continues" in capsys.readouterr().err
    monkeypatch.setattr(parts, "compute", original)
    assert call(data) == 0
    assert "(4 parts written, 1 already there)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--batch", "0"], 2, "--batch 0: at least 1"),
        (["--seed", "-1"], 2, "--seed -1: a whole number"),
        (["--name", "../x"], 1, "not a name for a feature cache"),
        (["--teacher", "qwen"], 2, "invalid choice: 'qwen'"),
        (["--dtype", "int8"], 2, "invalid choice: 'int8'"),
    ],
)
def test_a_wrong_call_is_explained(data, more, code, said, capsys):
    assert call(data, *more) == code
    assert said in capsys.readouterr().err
    assert not (data / "features").exists()


def test_a_missing_data_set_is_named(tmp_path, capsys):
    assert call(tmp_path / "none") == 1
    assert "make one with `unialign prepare`" in capsys.readouterr().err


def test_a_folder_that_is_no_teacher_is_named(data, tmp_path, capsys):
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "teacher.json").write_text("{}")
    assert call(data, "--teacher-dir", str(folder)) == 1
    assert "the teacher cannot be read" in capsys.readouterr().err
