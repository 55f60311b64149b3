"""Decoding large images tile by tile, so that memory does not grow with the image.

The autoencoder's norms and attention see a whole image, so tiles decode to slightly different
colours; neighbours overlap, and a linear ramp leads from one to the next. Tiles, overlaps and ramps
are those of diffusers' `AutoencoderKL`, whose tiled pictures are therefore equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float

TILE = 128
OVERLAP = 0.25


def decode_tiled(
    decode: Callable[[Any], Any],
    latents: Float[np.ndarray, "B h w C"],
    factor: int,
    *,
    tile: int = TILE,
    overlap: float = OVERLAP,
) -> Float[np.ndarray, "B H W 3"]:
    """Decodes latents in overlapping tiles.

    Args:
      decode: tile of latents -> its image, `factor` times as large; jit it: there are at most four
        shapes, of the tiles inside, at the right, at the bottom and in the corner.
      latents: what to decode; no more than a tile is decoded as it is.
      factor: pixels per latent along each side.
      tile: height and width of a tile, in latents.
      overlap: share of a tile that it has in common with the next.

    Returns:
      float32 [B, h * factor, w * factor, 3], on the host.

    Raises:
      ValueError: tiles that do not overlap, or overlap by all they have.
    """
    step = int(tile * (1 - overlap))
    if not 0 < step < tile:
        raise ValueError(f"tiles of {tile} latents cannot overlap by {overlap:.0%} of themselves")
    height, width = latents.shape[1:3]
    if height <= tile and width <= tile:
        return np.asarray(decode(latents))
    ramp = math.floor(tile * factor * overlap)
    kept = tile * factor - ramp
    rows: list[np.ndarray] = []
    above: list[np.ndarray] = []
    for top in range(0, height, step):
        row: list[np.ndarray] = []
        for left in range(0, width, step):
            image = np.array(decode(latents[:, top : top + tile, left : left + tile]))
            if above:
                _blend(above[len(row)], image, ramp, axis=1)
            if row:
                _blend(row[-1], image, ramp, axis=2)
            row.append(image)
        rows.append(np.concatenate([image[:, :kept, :kept] for image in row], axis=2))
        above = row
    return np.concatenate(rows, axis=1)


def _blend(before: np.ndarray, after: np.ndarray, ramp: int, axis: int) -> None:
    """Lets the beginning of `after` come out of the end of `before`, in place."""
    length = min(before.shape[axis], after.shape[axis], ramp)
    shape = [1] * after.ndim
    shape[axis] = length
    share = (np.arange(length, dtype=np.float32) / np.float32(length)).reshape(shape)
    beginning = tuple(slice(length) if i == axis else slice(None) for i in range(after.ndim))
    end = tuple(slice(-length, None) if i == axis else slice(None) for i in range(after.ndim))
    after[beginning] = before[end] * (1 - share) + after[beginning] * share
