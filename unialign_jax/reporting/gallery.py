"""A contact sheet of the six tasks for a README: what went in, was wanted, and came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from unialign_jax.errors import UserError
from unialign_jax.reporting import words
from unialign_jax.reporting.markup import percent
from unialign_jax.sampling.grid import wrap

if TYPE_CHECKING:
    from unialign_jax.evaluation.scenes.results import Shown

# All sizes are of a sheet that is shown WIDTH wide; it is drawn larger for screens that can.
WIDTH, SCALE = 900, 2
MARGIN, LABELS, GAP, BETWEEN = 28, 120, 22, 5
PICTURE = 72
# Width of the text beside the picture where words are what was asked for.
TEXT = 138
TITLE, LARGE, BODY, SMALL = 30, 20, 12.5, 11
PAPER, INK, FAINT, RULE = (255, 255, 255), (29, 31, 36), (105, 110, 122), (226, 224, 219)
RIGHT, WRONG = (26, 127, 75), (179, 55, 47)


def draw_gallery(scores: Mapping[str, Any], shown: Sequence[Shown], path: Path) -> None:
    """Draws the first shown items of every task, as many as fit in a row.

    Args:
        scores: `scores.json`.
        shown: items of any tasks.
        path: of the PNG file.

    Raises:
        UserError: the file cannot be written.
    """
    by_task: dict[str, list[Shown]] = {}
    for item in shown:
        by_task.setdefault(item.task, []).append(item)
    pen = _Pen()
    top = _draw_title(pen, scores)
    for task in words.in_order(by_task):
        top = _draw_row(pen, top, task, scores, by_task[task])
    try:
        pen.sheet(top + MARGIN - GAP // 2).save(path, optimize=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}).") from error


class _Pen:
    """Draws in the sheet's own sizes on a canvas that grows as needed."""

    def __init__(self) -> None:
        self._canvas = Image.new("RGB", (WIDTH * SCALE, 400 * SCALE), PAPER)
        self._fonts: dict[float, Any] = {}

    def font(self, size: float) -> Any:
        if size not in self._fonts:
            self._fonts[size] = ImageFont.load_default(size * SCALE)
        return self._fonts[size]

    def text(self, x: float, y: float, text: str, size: float, colour: Any = INK) -> float:
        """A line of text; returns its width."""
        font = self.font(size)
        self._draw(y + 2 * size).text((x * SCALE, y * SCALE), text, fill=colour, font=font)
        return font.getlength(text) / SCALE

    def paragraph(
        self, x: float, y: float, width: float, text: str, size: float, colour: Any = INK
    ) -> float:
        """A text in lines of at most a width; returns where it ends."""
        for line in wrap(text, int(width * SCALE), self.font(size)):
            self.text(x, y, line, size, colour)
            y += 1.3 * size
        return y

    def picture(self, x: float, y: float, image: np.ndarray) -> None:
        """A picture, its pixels as squares, in a thin frame."""
        side = PICTURE * SCALE
        box = (round(x * SCALE), round(y * SCALE))
        draw = self._draw(y + PICTURE)
        enlarged = Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST)
        self._canvas.paste(enlarged, box)
        draw.rectangle((*box, box[0] + side - 1, box[1] + side - 1), outline=RULE)

    def sign(self, x: float, y: float, right: bool) -> None:
        """A tick or a cross, 9 wide."""
        strokes = [[(0, 5), (3, 8), (9, 0)]] if right else [[(0, 0), (8, 8)], [(0, 8), (8, 0)]]
        for points in strokes:
            places = [((x + a) * SCALE, (y + b) * SCALE) for a, b in points]
            self._draw(y + 9).line(places, RIGHT if right else WRONG, 2 * SCALE, joint="curve")

    def rule(self, y: float) -> None:
        """A thin line across the sheet."""
        ends = [(MARGIN * SCALE, y * SCALE), ((WIDTH - MARGIN) * SCALE, y * SCALE)]
        self._draw(y).line(ends, RULE, SCALE)

    def sheet(self, height: float) -> Image.Image:
        """The canvas, cut at a height."""
        self._draw(height)
        return self._canvas.crop((0, 0, self._canvas.width, round(height * SCALE)))

    def _draw(self, bottom: float) -> ImageDraw.ImageDraw:
        """Something to draw with, down to a height."""
        needed = round((bottom + MARGIN) * SCALE)
        if needed > self._canvas.height:
            grown = Image.new("RGB", (self._canvas.width, 2 * needed), PAPER)
            grown.paste(self._canvas, (0, 0))
            self._canvas = grown
        return ImageDraw.Draw(self._canvas)


def _draw_title(pen: _Pen, scores: Mapping[str, Any]) -> float:
    pen.text(MARGIN, MARGIN - 6, "One network, six tasks", TITLE)
    split = words.SPLITS.get(scores["split"], scores["split"])
    about = f"scenes, {words.world_of(scores)}, {scores['items']} items per task: {split}"
    end = pen.paragraph(MARGIN, MARGIN + 34, WIDTH - 2 * MARGIN, about, BODY, FAINT)
    return end + GAP / 2


def _draw_row(
    pen: _Pen, top: float, task: str, scores: Mapping[str, Any], items: Sequence[Shown]
) -> float:
    """One task; returns where the next one begins."""
    pen.rule(top)
    top += GAP * 0.8
    pen.text(MARGIN, top - 5, task, LARGE)
    end = top + 24
    if task in scores["scores"]:
        kind = f" {words.MEAN_OF[task]}" if task in words.MEAN_OF else ""
        pen.text(MARGIN, end, f"{percent(scores['scores'][task])}{kind}", BODY + 1)
        interval = scores["details"].get(task, {}).get("interval")
        if interval:
            low, high = map(percent, interval)
            pen.text(MARGIN, end + 19, f"{low.removesuffix(' %')} to {high}", SMALL, FAINT)
        end += 38
    left = MARGIN + LABELS
    for item in items:
        width = _width(item)
        if left + width > WIDTH - MARGIN + 1:
            break
        end = max(end, _draw_item(pen, left, top, width, item))
        left += width + GAP
    return end + GAP * 0.8


def _pictures(item: Shown) -> list[tuple[str, np.ndarray]]:
    """The pictures of an item with their labels."""
    found = [("given", source) for source in item.sources]
    found += [("wanted", item.truth)] if item.truth is not None else []
    found += [("sampled", item.made)] if item.made is not None else []
    return found


def _width(item: Shown) -> float:
    count = len(_pictures(item))
    if item.made is None:
        return count * (PICTURE + BETWEEN) + BETWEEN + TEXT
    return count * PICTURE + (count - 1) * BETWEEN


def _draw_item(pen: _Pen, left: float, top: float, width: float, item: Shown) -> float:
    """Pictures with labels, and words below or, where words were asked for, beside."""
    x = left
    for label, image in _pictures(item):
        pen.text(x, top - 3, label, SMALL, FAINT)
        pen.picture(x, top + 13, image)
        x += PICTURE + BETWEEN
    below = top + PICTURE + 20
    if item.made is not None:
        pen.sign(left, below + 2, item.right)
        note = f"{item.text}, IoU {item.score:.2f}"
        text = note if item.task in words.MEAN_OF else item.text
        return pen.paragraph(left + 14, below, width - 14, text, BODY)
    x, y = x + BETWEEN, top + 12
    if item.text:
        y = pen.paragraph(x, y, TEXT, item.text, BODY, FAINT)
    pen.sign(x, y + 2, item.right)
    y = pen.paragraph(x + 14, y, TEXT - 14, item.made_text or "(nothing)", BODY)
    if not item.right:
        y = pen.paragraph(x + 14, y, TEXT - 14, f"truth: {item.truth_text}", SMALL, FAINT)
    return max(below - 4, y)
