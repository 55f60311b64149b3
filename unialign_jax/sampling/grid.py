"""Contact sheets: pictures and texts in rows, for a look at many results at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# A picture, a text, a picture with a caption below it, or nothing.
Cell = Any

BACKGROUND, INK, FAINT = (255, 255, 255), (20, 20, 20), (110, 110, 110)
FONT_SIZE, LINE_HEIGHT, MARGIN = 12, 15, 6
MOST_LINES = 8
# Pictures so many times smaller than a cell are enlarged with their pixels as squares: there is
# nothing between them to be guessed.
PIXELATED_FROM = 4


def contact_sheet(
    rows: Sequence[Sequence[Cell]], *, titles: Sequence[str] = (), cell: int = 128
) -> Image.Image:
    """Lays out rows of cells.

    Args:
      rows: each cell is a PIL image or uint8 array [H, W, 3], a text, a pair (image, caption), or
        None. Rows may have different lengths.
      titles: a heading per column.
      cell: width of a column in pixels; images are scaled to it.

    Returns:
      An RGB image.
    """
    font = ImageFont.load_default(FONT_SIZE)
    columns = max([len(titles), *(len(row) for row in rows)], default=0)
    drawn = [[_draw_cell(content, cell, font) for content in row] for row in rows]
    if titles:
        drawn.insert(0, [_draw_text(title, cell, font, FAINT) for title in titles])
    heights = [max((picture.height for picture in row), default=0) for row in drawn]
    sheet = Image.new(
        "RGB",
        (
            MARGIN + max(columns, 1) * (cell + MARGIN),
            MARGIN + sum(height + MARGIN for height in heights),
        ),
        BACKGROUND,
    )
    top = MARGIN
    for row, height in zip(drawn, heights, strict=True):
        for column, picture in enumerate(row):
            sheet.paste(picture, (MARGIN + column * (cell + MARGIN), top))
        top += height + MARGIN
    return sheet


def wrap(text: str, width: int, font: Any) -> list[str]:
    """Breaks a text into lines of at most `width` pixels; a longer word is cut.

    At most `MOST_LINES` lines; the last ends with dots where something is left out.
    """
    lines: list[str] = []
    line = ""
    for word in text.split():
        while word:
            joined = f"{line} {word}".strip()
            if font.getlength(joined) <= width:
                line, word = joined, ""
            elif line:
                lines.append(line)
                line = ""
            else:
                fits = max(
                    (n for n in range(1, len(word)) if font.getlength(word[:n]) <= width), default=1
                )
                lines.append(word[:fits])
                word = word[fits:]
    lines += [line] if line else []
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], lines[MOST_LINES - 1][:-2] + "..."]
    return lines


def _draw_cell(content: Cell, width: int, font: Any) -> Image.Image:
    if content is None:
        return Image.new("RGB", (width, 1), BACKGROUND)
    if isinstance(content, str):
        return _draw_text(content, width, font, INK)
    if isinstance(content, tuple):
        picture, caption = (_draw_cell(part, width, font) for part in content)
        both = Image.new("RGB", (width, picture.height + caption.height), BACKGROUND)
        both.paste(picture, (0, 0))
        both.paste(caption, (0, picture.height))
        return both
    image = content if isinstance(content, Image.Image) else Image.fromarray(np.asarray(content))
    height = max(1, round(image.height * width / image.width))
    pixelated = width >= PIXELATED_FROM * image.width
    method = Image.Resampling.NEAREST if pixelated else Image.Resampling.LANCZOS
    return image.convert("RGB").resize((width, height), method)


def _draw_text(text: str, width: int, font: Any, colour: tuple[int, int, int]) -> Image.Image:
    lines = wrap(text, width, font)
    picture = Image.new("RGB", (width, max(1, LINE_HEIGHT * len(lines))), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        draw.text((0, number * LINE_HEIGHT), line, fill=colour, font=font)
    return picture
