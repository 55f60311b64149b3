"""A model's name: the bundle that comes with the package, unless a folder here holds a model."""

from __future__ import annotations

import shutil

import pytest

from unialign_jax.bundle import shipped
from unialign_jax.bundle.shipped import find_model, shipped_models
from unialign_jax.errors import UserError
from unialign_jax.sampling.loading import data_source, load_model
from unialign_jax.sampling.pipeline import Pipeline


def test_the_bundle_that_comes_with_the_package_says_what_it_was_trained_on():
    data = data_source(find_model("scenes"))
    assert data == {"name": "scenes", "level": "demo", "pixels": 16}


@pytest.fixture
def package(bundle, tmp_path, monkeypatch):
    """A package that ships the bundle `tiny`, and an empty working directory."""
    folder = tmp_path / "package/bundled"
    shutil.copytree(bundle, folder / "tiny")
    (folder / "notes").mkdir()
    monkeypatch.setattr(shipped, "FOLDER", folder)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


def test_a_name_finds_the_shipped_bundle(package):
    assert shipped_models() == ["tiny"]
    assert find_model("tiny") == package / "tiny"
    assert Pipeline.from_pretrained("tiny").model.image_size == 16


def test_a_folder_of_that_name_wins_only_if_it_holds_a_model(package, tmp_path, run):
    here = tmp_path / "here/tiny"
    here.mkdir()
    (here / "dataset.json").write_text("{}")
    assert find_model("tiny") == package / "tiny"
    shutil.copy(run / "config.json", here)
    assert find_model("tiny").resolve() == here


def test_a_path_is_never_taken_for_a_name(package, tmp_path):
    (tmp_path / "here/x").mkdir()
    for path in ("./tiny", "x/tiny", str(tmp_path / "tiny")):
        assert str(find_model(path)) == path.removeprefix("./")


@pytest.mark.parametrize("name", ["tinny", "notes"])
def test_an_unknown_name_lists_the_shipped_ones(package, name):
    with pytest.raises(UserError, match=r"(?s)not there.*comes with the package \(tiny\)"):
        load_model(name)


def test_a_package_that_ships_none_says_so(package, tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"\(none here\)"):
        load_model("tiny")
