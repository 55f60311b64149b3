"""The contact sheet at the end of a sampling job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from unialign_jax.data.tasks import BadItem, Task
from unialign_jax.sampling.grid import contact_sheet
from unialign_jax.sampling.items import Item
from unialign_jax.sampling.job import JobOptions, read_images
from unialign_jax.sampling.writers import OK, Result, read_all, write_image_file

GRID = "grid.png"
MOST_ITEMS, PER_ROW = 64, 8


def write_grid(items: Sequence[Item], options: JobOptions) -> Path | None:
    """Writes `grid.png` of the first items that are made.

    Returns:
      Its path, or None where nothing is made yet.
    """
    results = read_all(options.out)
    made = [(i, results[i.id]) for i in items if i.id in results and results[i.id].status == OK]
    if not made:
        return None
    cells = [_cells(item, result, options) for item, result in made[:MOST_ITEMS]]
    if options.task is Task.GENERATE:
        flat = [row[0] for row in cells]
        cells = [flat[start : start + PER_ROW] for start in range(0, len(flat), PER_ROW)]
    path = options.out / GRID
    write_image_file(path, contact_sheet(cells))
    return path


def _cells(item: Item, result: Result, options: JobOptions) -> list[Any]:
    """An item's own images, then its result with what was asked for."""
    try:
        given: list[Any] = list(read_images(item, options))
    except BadItem:
        given = []  # moved since; the result stands without them
    if not result.outputs:
        return [*given, f"{item.text} {result.text}".strip()]
    with Image.open(options.out / result.outputs[0]) as picture:
        return [*given, (picture.convert("RGB"), item.text)]
