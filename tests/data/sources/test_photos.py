"""Bundled photographs become ordinary JSONL with exact editing pairs."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
from PIL import Image

from unialign_jax.data.sources import jsonl, photos
from unialign_jax.data.tasks import Task
from unialign_jax.errors import UserError


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    return folder, photos.write_photos(folder, size=48, edits=4)


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_there_are_twelve_photographs_with_short_captions_and_licences():
    assert len(photos.PHOTOS) == 12
    for photo in photos.PHOTOS:
        assert 5 <= len(photo.caption.split()) <= 12
        assert any(word in photo.licence for word in ("CC0", "public domain", "no known copyright"))
    captions = [photo.caption for photo in photos.PHOTOS]
    assert len(set(captions)) == 12


def test_every_line_is_one_that_the_jsonl_source_reads(written):
    folder, paths = written
    for path, task in zip(paths, (Task.GENERATE, Task.EDIT), strict=True):
        for line in lines_of(path):
            record = jsonl.read_record(line, "", folder, jsonl.JsonlOptions())
            assert record.task is task
            assert record.captions


def test_images_are_squares_of_the_photographs(written):
    folder, (t2i, _) = written
    for line in lines_of(t2i):
        image = Image.open(folder / line["image"][0])
        assert (image.size, image.mode) == ((48, 48), "RGB")
        assert np.asarray(image).std() > 5


def test_edits_are_exact_pixel_operations(written):
    folder, (_, edit) = written
    lines = lines_of(edit)
    assert {line["instruction"] for line in lines} == {e.instruction for e in photos.EDIT_KINDS}
    for line in lines:
        source, target = (np.asarray(Image.open(folder / name)) for name in line["image"])
        grey = np.asarray(Image.fromarray(source).convert("L"))[..., None].repeat(3, -1)
        expected = {
            "turn it upside down": source[::-1],
            "mirror it": source[:, ::-1],
            "invert the colours": 255 - source,
            "make it black and white": grey,
        }[line["instruction"]]
        np.testing.assert_array_equal(target, expected)
        assert (target != source).any()


def test_grey_photographs_are_not_asked_to_turn_grey():
    for index, photo in enumerate(photos.PHOTOS):
        names = [edit.name for edit in photos.edits_of(index, photo, 4)]
        assert len(names) == len(set(names)) == (4 if photo.colour else 3)
        assert ("grey" in names) == photo.colour


def test_two_edits_each_cover_every_kind():
    chosen = [
        edit.name
        for index, photo in enumerate(photos.PHOTOS)
        for edit in photos.edits_of(index, photo, photos.EDITS)
    ]
    assert len(chosen) == 24
    assert set(chosen) == {edit.name for edit in photos.EDIT_KINDS}


def test_the_same_call_writes_the_same_files(written, tmp_path):
    folder, paths = written
    again = photos.write_photos(tmp_path, size=48, edits=4)
    for old, new in zip(paths, again, strict=True):
        assert old.read_bytes() == new.read_bytes()
    assert (folder / "LICENCES.txt").read_text() == (tmp_path / "LICENCES.txt").read_text()


def test_without_scikit_image_the_remedy_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'unialign-jax\[demo\]'"):
        photos.write_photos(tmp_path)


def test_a_missing_photograph_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(photos, "photo_folder", lambda: tmp_path)
    with pytest.raises(UserError, match=r"astronaut\.png is missing"):
        photos.write_photos(tmp_path / "out")
