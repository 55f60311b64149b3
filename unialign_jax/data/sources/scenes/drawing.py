"""Pictures of scenes and their perception maps, antialiased, as uint8 arrays [P, P, 3]."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from unialign_jax.data.sources.scenes.world import LEVELS, Scene, Thing

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 70),
    "blue": (50, 90, 230),
    "yellow": (240, 210, 50),
    "purple": (160, 60, 200),
    "cyan": (60, 200, 220),
    "orange": (245, 140, 40),
    "pink": (250, 150, 190),
}
BACKGROUNDS = {"black": (16, 16, 16), "grey": (128, 128, 128), "white": (240, 240, 240)}

# Points per pixel and direction at which a shape is looked up.
SAMPLES = 4
# Grey of the depth map at the top and at the bottom of the picture; what is farther is darker.
FAR, NEAR = 96, 255


def _inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether points lie in a shape; x to the right and y down, both 1 at the shape's radius."""
    if shape == "circle":
        return x**2 + y**2 < 1
    if shape == "square":
        return np.maximum(abs(x), abs(y)) < 0.97
    if shape == "triangle":
        return (abs(x) < (y + 1) / 1.9) & (y < 0.9)
    if shape == "cross":
        return (np.minimum(abs(x), abs(y)) < 0.3) & (np.maximum(abs(x), abs(y)) < 1)
    if shape == "diamond":
        return abs(x) + abs(y) < 1.1
    if shape == "ring":
        return (x**2 + y**2 < 1) & (x**2 + y**2 > 0.25)
    raise ValueError(f"unknown shape {shape!r}")


def centre(level: str, thing: Thing) -> tuple[float, float]:
    """(y, x) of a thing's middle, from 0 to 1; a shift never pushes it over the picture's edge."""
    grid = LEVELS[level].grid
    reach = min(radius(level, thing), 0.5 / grid)
    row, column = divmod(thing.place, grid)
    y, x = (row + 0.5 + thing.shift[0]) / grid, (column + 0.5 + thing.shift[1]) / grid
    return min(max(y, reach), 1 - reach), min(max(x, reach), 1 - reach)


def radius(level: str, thing: Thing) -> float:
    """Half the height of a thing, as a share of the picture."""
    found = LEVELS[level]
    return found.radii[found.sizes.index(thing.size)] / found.grid


def mask(level: str, thing: Thing, pixels: int) -> Float[np.ndarray, "P P"]:
    """The share of each pixel that a thing covers, were it alone: 0 to 1; read-only."""
    return _mask(thing.shape, *centre(level, thing), radius(level, thing), pixels)


@functools.lru_cache(maxsize=4096)
def _mask(shape: str, y: float, x: float, size: float, pixels: int) -> np.ndarray:
    points = (np.arange(pixels * SAMPLES) + 0.5) / (pixels * SAMPLES)
    inside = _inside(shape, (points[None, :] - x) / size, (points[:, None] - y) / size)
    share = inside.reshape(pixels, SAMPLES, pixels, SAMPLES).mean((1, 3), dtype=np.float32)
    share.flags.writeable = False
    return share


def coverage(scene: Scene, pixels: int) -> Float[np.ndarray, "T P P"]:
    """The share of each pixel in which each thing is seen, what is nearer hiding what is behind."""
    seen = np.stack([mask(scene.level, thing, pixels) for thing in scene.things])
    left = np.ones_like(seen[0])
    for index in reversed(range(len(seen))):
        own = seen[index] * left
        left = left * (1 - seen[index])
        seen[index] = own
    return seen


def render(scene: Scene, pixels: int) -> UInt8[np.ndarray, "P P 3"]:
    """The picture of a scene."""
    picture = np.full((pixels, pixels, 3), BACKGROUNDS[scene.background], np.float32)
    for thing in scene.things:
        share = mask(scene.level, thing, pixels)[..., None]
        picture += share * (np.asarray(COLOURS[thing.colour], np.float32) - picture)
    return np.round(picture).astype(np.uint8)


def segmentation(scene: Scene, index: int, pixels: int) -> UInt8[np.ndarray, "P P 3"]:
    """White where thing `index` is seen, black elsewhere."""
    return _grey(255 * (coverage(scene, pixels)[index] > 0.5))


def depth_of(level: str, thing: Thing) -> float:
    """Grey of a thing in the depth map: it stands on the ground, so lower is nearer."""
    return FAR + (NEAR - FAR) * centre(level, thing)[0]


def depth_map(scene: Scene, pixels: int) -> UInt8[np.ndarray, "P P 3"]:
    """Every thing in the grey of its depth, the background black."""
    grey = np.zeros((pixels, pixels))
    for thing, seen in zip(scene.things, coverage(scene, pixels), strict=True):
        grey[seen > 0.5] = depth_of(scene.level, thing)
    return _grey(np.round(grey))


def edge_map(scene: Scene, pixels: int) -> UInt8[np.ndarray, "P P 3"]:
    """White along the inner border of every thing, one pixel wide (4-neighbourhood)."""
    edges = np.zeros((pixels, pixels), bool)
    for seen in coverage(scene, pixels):
        inside = seen > 0.5
        outside = np.pad(~inside, 1)
        near = outside[:-2, 1:-1] | outside[2:, 1:-1] | outside[1:-1, :-2] | outside[1:-1, 2:]
        edges |= inside & near
    return _grey(255 * edges)


def _grey(values: np.ndarray) -> UInt8[np.ndarray, "P P 3"]:
    return np.repeat(values.astype(np.uint8)[..., None], 3, axis=-1)
