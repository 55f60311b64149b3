"""`unialign bundle` from a run to images: messages, files, and commands that take its result."""

from __future__ import annotations

import json
import shutil

import pytest

# The tiny run; pytest finds fixtures by their names.
from tests.sampling.conftest import compiled, run
from unialign_jax import cli
from unialign_jax.bundle import shipped
from unialign_jax.bundle.contents import read_description
from unialign_jax.commands.bundle import DTYPES
from unialign_jax.commands.evaluate import find_world
from unialign_jax.errors import UserError

__all__ = ["compiled", "run"]


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def call(*words: object):
        code = cli.main([str(word) for word in words])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return call


@pytest.fixture
def scenes_run(run, tmp_path):
    """The run as if it had been trained on scenes."""
    path, data = tmp_path / "run", tmp_path / "data"
    shutil.copytree(run, path)
    config = json.loads((path / "config.json").read_text())
    config["data"]["path"] = str(data)
    (path / "config.json").write_text(json.dumps(config))
    data.mkdir()
    source = {"name": "scenes", "level": "demo", "pixels": 16, "seed": 0}
    (data / "dataset.json").write_text(json.dumps({"source": source}))
    return path


def test_a_bundle_is_made_and_its_size_told(call, run, tmp_path):
    code, out, error = call("bundle", run, "tiny", "--dtype", "float16", "--name", "cats")
    assert code == 0, error
    description = read_description(tmp_path / "tiny")
    count = description["components"]["transformer"]["parameters"]
    assert f"cats: transformer {count:,} parameters" in out
    size = sum(file.stat().st_size for file in (tmp_path / "tiny").rglob("*") if file.is_file())
    assert f"{size:,} bytes" in out
    code, _, error = call("bundle", run, "tiny")
    assert code == 1
    assert "--overwrite" in error


def test_a_shipped_name_samples_from_any_folder(call, run, tmp_path, monkeypatch):
    assert call("bundle", run, "package/tiny")[0] == 0
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "package")
    code, out, error = call("sample", "--model", "tiny", "--prompt", "a cat", "--out", "out")
    assert code == 0, error
    assert out.strip().endswith(".png")
    assert (tmp_path / out.strip()).is_file()
    code, _, error = call("sample", "--model", "tinny", "--prompt", "a cat", "--out", "out")
    assert code == 1
    assert "comes with the package (tiny)" in error


def test_a_bundle_knows_the_world_it_was_trained_on_when_the_data_are_gone(
    call, scenes_run, tmp_path
):
    code, out, _ = call("bundle", scenes_run, "tiny")
    assert code == 0 and "note:" not in out
    shutil.rmtree(tmp_path / "data")
    assert "does not say what it was trained on" in call("bundle", scenes_run, "late")[1]
    level, pixels = find_world(tmp_path / "tiny", None, None)
    assert (level.name, pixels) == ("demo", 16)
    with pytest.raises(UserError, match="--level demo or --level full"):
        find_world(scenes_run, None, None)
    assert str(tmp_path) not in (tmp_path / "tiny/unialign.json").read_text()


def test_the_recorded_config_comes_with_what_the_run_changed(call, run, tmp_path):
    code, _, error = call("bundle", run, "tiny", "--config", "scenes:demo")
    assert code == 0, error
    made_from = read_description(tmp_path / "tiny")["made_from"]
    assert made_from["config"] == "scenes:demo"
    assert any(line.startswith("model.width: 128 -> 32") for line in made_from["changed"])
    assert not any("nowhere" in line for line in made_from["changed"])
    code, _, error = call("bundle", run, "other", "--config", "scnes")
    assert code == 2
    assert "no config named" in error
    assert not (tmp_path / "other").exists()


def test_the_dtypes_offered_are_those_that_are_written():
    from unialign_jax.bundle import contents

    assert DTYPES == contents.DTYPES
