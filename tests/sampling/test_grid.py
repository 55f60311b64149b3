"""Contact sheets."""

from __future__ import annotations

import numpy as np
from PIL import ImageFont

from unialign_jax.sampling.grid import FONT_SIZE, MARGIN, MOST_LINES, contact_sheet, wrap

FONT = ImageFont.load_default(FONT_SIZE)


def test_a_sheet_has_a_column_per_cell_and_scales_its_images(photos):
    sheet = contact_sheet([photos[:3], photos[:1]], cell=60)
    assert sheet.width == MARGIN + 3 * (60 + MARGIN)
    assert sheet.height == MARGIN + 2 * (40 + MARGIN)  # 30 x 20 pixels become 60 x 40
    pixels = np.asarray(sheet)
    assert pixels[MARGIN + 20, MARGIN + 30].tolist() != [255, 255, 255]
    assert (pixels[-10:, -60:] == 255).all(), "a short row leaves its end empty"


def test_texts_captions_titles_arrays_and_gaps_are_cells(photos):
    rows = [["a text", (photos[0], "its caption"), None, np.asarray(photos[1])]]
    plain = contact_sheet([[photos[0]]], cell=60)
    sheet = contact_sheet(rows, titles=("one", "two"), cell=60)
    assert sheet.height > plain.height + 20
    assert (np.asarray(sheet) < 128).any()


def test_an_empty_sheet_is_still_an_image():
    assert contact_sheet([]).size[0] > 0


def test_small_pictures_keep_their_pixels_and_larger_ones_are_smoothed():
    checks = np.indices((15, 15)).sum(0) % 2 * 255
    small = np.repeat(checks.astype(np.uint8)[..., None], 3, -1)
    for cell, greys in ((60, False), (45, True)):
        inner = np.asarray(contact_sheet([[small]], cell=cell))[MARGIN:-MARGIN, MARGIN:-MARGIN]
        assert bool(((inner > 0) & (inner < 255)).any()) is greys


def test_lines_are_broken_at_words_and_long_words_are_cut():
    assert wrap("", 60, FONT) == []
    lines = wrap("one two three four five six", 60, FONT)
    assert len(lines) > 1
    assert " ".join(lines) == "one two three four five six"
    assert all(FONT.getlength(line) <= 60 for line in lines)
    word = wrap("x" * 50, 60, FONT)
    assert "".join(word) == "x" * 50
    assert all(FONT.getlength(line) <= 60 for line in word)


def test_a_very_long_text_ends_with_dots():
    lines = wrap("word " * 200, 60, FONT)
    assert len(lines) == MOST_LINES
    assert lines[-1].endswith("...")
