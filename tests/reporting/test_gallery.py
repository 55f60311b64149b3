"""The contact sheet."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from unialign_jax.errors import UserError
from unialign_jax.reporting.gallery import PAPER, SCALE, WIDTH, draw_gallery


def drawn(scores, shown, path):
    draw_gallery(scores, shown, path)
    return np.asarray(Image.open(path))


def test_all_tasks_are_on_one_sheet_and_the_margins_are_free(material, tmp_path):
    sheet = drawn(material.scores, material.shown, tmp_path / "g.png")
    assert sheet.shape[1] == WIDTH * SCALE
    assert sheet.shape[0] > 6 * 90 * SCALE
    edges = (sheet[:, : 20 * SCALE], sheet[:, -20 * SCALE :], sheet[-10 * SCALE :])
    for edge in edges:
        assert (edge == PAPER).all()


def test_the_pictures_are_enlarged_without_mixing_their_pixels(material, tmp_path):
    sheet = drawn(material.scores, material.shown, tmp_path / "g.png")
    for grey in (60, 120, 180):
        count = int((sheet == grey).all(-1).sum())
        # Each picture is 144 pixels high, less its frame.
        assert count >= 142 * 142


@pytest.mark.parametrize("tasks", [(), ("answer",), ("perceive", "generate")])
def test_missing_tasks_leave_their_row_out(material, tmp_path, tasks):
    shown = [item for item in material.shown if item.task in tasks]
    sheet = drawn(material.scores, shown, tmp_path / "g.png")
    whole = drawn(material.scores, material.shown, tmp_path / "h.png")
    assert sheet.shape[0] < whole.shape[0]


def test_tasks_without_a_score_are_shown_all_the_same(material, tmp_path):
    bare = {**material.scores, "scores": {}, "details": {}}
    assert drawn(bare, material.shown, tmp_path / "g.png").shape[0] > 500


def test_long_texts_make_room_instead_of_overlapping(material, tmp_path):
    long = [dataclasses.replace(item, text="word " * 40) for item in material.shown[:2]]
    short = drawn(material.scores, material.shown[:2], tmp_path / "s.png")
    assert drawn(material.scores, long, tmp_path / "l.png").shape[0] > short.shape[0] + 60


def test_a_folder_that_is_not_there_is_named(material, tmp_path):
    with pytest.raises(UserError, match=r"nowhere.*cannot be written"):
        draw_gallery(material.scores, material.shown, tmp_path / "nowhere" / "g.png")
