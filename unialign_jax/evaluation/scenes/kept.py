"""Whether an edit left alone what it was not asked to change."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from unialign_jax.data.sources.scenes.world import Scene
from unialign_jax.evaluation.scenes.compare import contents

if TYPE_CHECKING:
    from jaxtyping import UInt8

# Mean absolute error per channel, of 255, up to which the untouched pixels of a place are kept.
TOLERANCE = 16.0
# A place is looked at where so much of it is untouched; the rest of a rim says little.
LEAST_SHARE = 1 / 16


def keeps_scene(source: Scene, truth: Scene, read: Scene) -> bool:
    """Whether what an edit does not touch is read as it was: other things, and the background."""
    before, after = contents(source), contents(truth)
    stay, touched = before & after, {place for _, place in before ^ after}
    rest = {entry for entry in contents(read) if entry in stay or entry[1] not in touched}
    ground = source.background != truth.background or read.background == source.background
    return rest == stay and ground


def drift(
    source: UInt8[np.ndarray, "P P 3"],
    truth: UInt8[np.ndarray, "P P 3"],
    made: UInt8[np.ndarray, "P P 3"],
    grid: int,
) -> float:
    """How far the untouched pixels of the worst place are from the truth.

    Untouched are the pixels that are equal in source and truth.

    Args:
      source: what went in.
      truth: what should come out.
      made: what came out.
      grid: places per side.

    Returns:
      The mean absolute error per channel, 0 to 255; 0 where everything may change.
    """
    untouched = (source == truth).all(-1)
    error = abs(made.astype(np.float32) - truth).mean(-1)
    bounds = np.linspace(0, len(truth), grid + 1).round().astype(int)
    worst = 0.0
    for top, bottom in zip(bounds[:-1], bounds[1:], strict=True):
        for left, right in zip(bounds[:-1], bounds[1:], strict=True):
            here = untouched[top:bottom, left:right]
            if here.mean() >= LEAST_SHARE:
                worst = max(worst, float(error[top:bottom, left:right][here].mean()))
    return worst
