"""95 % confidence intervals of scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Standard deviations on either side of the mean that hold 95 % of a normal distribution.
Z = 1.959964


def wilson(right: int, total: int) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927, JASA 22:209)."""
    if not total:
        return 0.0, 1.0
    share, spread = right / total, Z**2 / total
    middle = (share + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * (share * (1 - share) / total + spread / (4 * total)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def normal(values: Sequence[float]) -> tuple[float, float]:
    """The normal interval of a mean of numbers from 0 to 1, cut to them."""
    if len(values) < 2:
        return 0.0, 1.0
    middle = float(np.mean(values))
    half = Z * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)
