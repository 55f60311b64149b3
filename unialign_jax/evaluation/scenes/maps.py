"""Overlap of perception maps with the truth: intersection over union (IoU)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, UInt8

# Grey from which a pixel of a mask or of an edge map counts.
HALF = 127.5
# A pixel belongs to a depth when its grey is within this of it: less than half the step between two
# rows of places at any level.
DEPTH_TOLERANCE = 24


def map_iou(
    truth: UInt8[np.ndarray, "P P 3"], made: UInt8[np.ndarray, "P P 3"], kind: str
) -> float:
    """IoU of a map, 0 to 1.

    "segment" and "edges": of the pixels above half. "depth": the mean over the depths that the
    truth has beside the background's black, of the pixels within `DEPTH_TOLERANCE` of each.

    Raises:
      ValueError: no such kind of map.
    """
    true, found = (picture.astype(np.float32).mean(-1) for picture in (truth, made))
    if kind in ("segment", "edges"):
        return iou(true > HALF, found > HALF)
    if kind != "depth":
        raise ValueError(f"kind of map {kind!r}: segment, depth or edges")
    depths = np.unique(true[true > 0])
    if not len(depths):
        return iou(true > 0, found > DEPTH_TOLERANCE)
    near = [(abs(grey - depths[:, None, None]) <= DEPTH_TOLERANCE) for grey in (true, found)]
    return float(np.mean([iou(*pair) for pair in zip(*near, strict=True)]))


def iou(a: Bool[np.ndarray, "P P"], b: Bool[np.ndarray, "P P"]) -> float:
    """Intersection over union; 1 for two empty sets."""
    union = np.logical_or(a, b).sum()
    return float(np.logical_and(a, b).sum() / union) if union else 1.0
