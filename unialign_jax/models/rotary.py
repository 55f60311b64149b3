"""Rotary position embeddings of image tokens (RoFormer, arXiv 2104.09864, in two dimensions).

Queries and keys are turned by angles that grow with their row and column, so that their product
depends on how far apart two patches lie, not on where they are. Condition images have the angles of
the target: what lies at the same place in two images meets first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def frequencies(count: int, fastest: float, slowest: float) -> Float[np.ndarray, " count"]:
    """`count` frequencies in radians per patch, a geometric row from `fastest` to `slowest`.

    RoFormer's are those with fastest 1 and slowest 10000^(-(count - 1) / count).
    """
    if count == 1:
        return np.array([fastest], np.float64)
    return np.geomspace(fastest, slowest, count)


def rotation_table(
    rows: int, columns: int, channels: int, *, fastest: float, slowest: float
) -> tuple[Float[np.ndarray, "N half"], Float[np.ndarray, "N half"]]:
    """Cosine and sine of the angle of every pair of channels at every patch, in row-major order.

    The first half of the pairs turns with the row, the second with the column.

    Args:
      rows: patches of the image from top to bottom.
      columns: patches from left to right.
      channels: of one head; a multiple of 4.
      fastest: radians per patch of the first pair.
      slowest: radians per patch of the last.

    Returns:
      float32 [rows * columns, channels / 2], twice; computed in float64.
    """
    turns = frequencies(channels // 4, fastest, slowest)
    shape = (rows, columns, channels // 4)
    by_row = np.broadcast_to(np.outer(np.arange(rows), turns)[:, None], shape)
    by_column = np.broadcast_to(np.outer(np.arange(columns), turns)[None], shape)
    angles = np.concatenate([by_row, by_column], axis=-1).reshape(rows * columns, channels // 2)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(
    x: Float[Array, "B T H K"], cosines: Float[Array, "T half"], sines: Float[Array, "T half"]
) -> Float[Array, "B T H K"]:
    """Turns pair i of every head, channels (i, i + K/2), by the token's angle i; in float32."""
    cosines, sines = cosines[:, None], sines[:, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (first * cosines - second * sines, first * sines + second * cosines)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
