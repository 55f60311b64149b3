"""What things of a level can look like: masks by place, shift, size and shape, sharp or blurred."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import TYPE_CHECKING

import numpy as np

from unialign_jax.data.sources.scenes import drawing
from unialign_jax.data.sources.scenes.world import LEVELS, Thing

if TYPE_CHECKING:
    from jaxtyping import Float

# Shifts tried per direction, as shares of the jitter. At 32 pixels and 0.15 cells, a thing lies at
# most 0.27 pixels from the nearest of the fine ones.
COARSE = (-2 / 3, 0.0, 2 / 3)
FINE = (-1.0, -2 / 3, -1 / 3, 0.0, 1 / 3, 2 / 3, 1.0)

# Coverage that windows leave out.
FAINT = 1e-3


@dataclasses.dataclass(frozen=True)
class Templates:
    """The masks of one place, cut to the window that they lie in.

    Attributes:
      things: what each mask shows; the colour is a stand-in.
      window: (rows, columns) of the picture.
      masks_MW: the share of each pixel of the window that is covered, 0 to 1.
      squares_MW: their squares.
      energy_M: sums of the squares.
      depth_M: how near each thing is, in the order of `Scene.of`.
    """

    things: tuple[Thing, ...]
    window: tuple[slice, slice]
    masks_MW: Float[np.ndarray, "M W"]
    squares_MW: Float[np.ndarray, "M W"]
    energy_M: Float[np.ndarray, " M"]
    depth_M: Float[np.ndarray, " M"]


def reading_size(level: str) -> int:
    """The height that pictures are averaged down to before they are read: the level's smallest."""
    return min(LEVELS[level].pixels)


@functools.cache
def templates(level: str, blur: float, fine: bool) -> tuple[Templates, ...]:
    """The masks of every place at the level's reading size, blurred, at all shifts or a few."""
    found = LEVELS[level]
    steps = (
        [share * found.jitter for share in (FINE if fine else COARSE)] if found.jitter else [0.0]
    )
    shifts = list(itertools.product(steps, steps))
    return tuple(_of_place(level, place, shifts, blur) for place in range(found.places))


def depth(level: str, thing: Thing) -> float:
    """A number that orders things as `Scene.of` does, from back to front."""
    found = LEVELS[level]
    # Places break ties, by less than the shifts of two things differ.
    return thing.place // found.grid + thing.shift[0] + 1e-6 * thing.place


@functools.lru_cache(maxsize=1024)
def mask(level: str, thing: Thing, blur: float) -> Float[np.ndarray, "P P"]:
    """The share of each pixel that a thing covers, at the level's reading size.

    Args:
      level: its name.
      thing: its colour is of no account.
      blur: standard deviation of a Gaussian, in pixels; the picture goes on beyond its edges.
    """
    sharp = drawing.mask(level, thing, reading_size(level))
    if not blur:
        return sharp
    kernel = gaussian(len(sharp), blur)
    return kernel @ sharp @ kernel.T


@functools.cache
def gaussian(pixels: int, blur: float) -> Float[np.ndarray, "P P"]:
    """The matrix that blurs a column of pixels, its ends repeated without end."""
    reach = math.ceil(4 * blur)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / blur) ** 2)
    matrix = np.zeros((pixels, pixels))
    for row in range(pixels):
        columns = np.clip(np.arange(row - reach, row + reach + 1), 0, pixels - 1)
        np.add.at(matrix[row], columns, weights / weights.sum())
    return matrix.astype(np.float32)


def _of_place(level: str, place: int, shifts: list[tuple[float, float]], blur: float) -> Templates:
    found = LEVELS[level]
    things = tuple(
        Thing(size, found.colours[0], shape, place, shift)
        for size in found.sizes
        for shape in found.shapes
        for shift in shifts
    )
    masks = np.stack([mask(level, thing, blur) for thing in things])
    window = _window(masks.max((0, 2))), _window(masks.max((0, 1)))
    masks = np.ascontiguousarray(masks[:, *window].reshape(len(things), -1))
    squares = masks**2
    return Templates(
        things,
        window,
        masks,
        squares,
        squares.sum(1),
        np.array([depth(level, thing) for thing in things]),
    )


def _window(most: np.ndarray) -> slice:
    where = np.flatnonzero(most > FAINT)
    return slice(int(where[0]), int(where[-1]) + 1)
