"""Curves for a chart from the lines of `metrics.jsonl`: picked, smoothed, thinned."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from unialign_jax.reporting import words

if TYPE_CHECKING:
    from jaxtyping import Float

# Width of the smoothing as a share of the run, and points of a smoothed curve.
BANDWIDTH = 0.015
POINTS = 160
# Raw values are shown one by one up to this number.
MOST_RAW = 400
# A curve whose values span more than this is drawn on a logarithmic scale.
LOG_SPAN = 12.0


@dataclasses.dataclass(frozen=True)
class Curve:
    """One line of a chart.

    Attributes:
        name: for the legend.
        points: [N, 2], x and y, x rising.
        style: index of its colour, or "raw" or "reference".
    """

    name: str
    points: Float[np.ndarray, "N 2"]
    style: int | str = 0


def values_of(
    lines: Sequence[Mapping[str, Any]],
    key: str,
    *,
    where: Callable[[Mapping[str, Any]], bool] = lambda line: True,
) -> Float[np.ndarray, "N 2"]:
    """(step, value) of the lines that have a finite value."""
    found = [
        (float(line["step"]), float(line[key]))
        for line in lines
        if where(line) and line.get(key) is not None and math.isfinite(line[key])
    ]
    return np.asarray(found, np.float64).reshape(-1, 2)


def smoothed(points: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, "M 2"]:
    """Gaussian-weighted means of the values, at evenly spread steps.

    Of values that are all positive, the geometric mean: a loss falls by factors.
    """
    if len(points) < 8:
        return points
    steps, values = points.T
    positive = bool((values > 0).all())
    values = np.log(values) if positive else values
    at = np.linspace(steps[0], steps[-1], min(POINTS, len(points)))
    width = max(BANDWIDTH * (steps[-1] - steps[0]), 1.5 * float(np.median(np.diff(steps))))
    weights = np.exp(-0.5 * ((at[:, None] - steps) / width) ** 2)
    means = weights @ values / weights.sum(1)
    return np.stack([at, np.exp(means) if positive else means], 1)


def thinned(points: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, "M 2"]:
    """At most `MOST_RAW` of the points, evenly spread."""
    every = -(-len(points) // MOST_RAW) if len(points) else 1
    return points[::every]


def term_curves(
    lines: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]], key: str
) -> list[Curve]:
    """One term of a run: its raw values, the smoothed curve, and the reference up to its end."""
    points = values_of(lines, key)
    if not len(points):
        return []
    curves = [Curve("each logged step", thinned(points), "raw")]
    other = values_of(reference, key)
    other = other[other[:, 0] <= points[-1, 0]]
    if len(other):
        curves.append(Curve("reference", smoothed(other), "reference"))
    return [*curves, Curve("this run", smoothed(points), 0)]


def task_curves(lines: Sequence[Mapping[str, Any]], key: str) -> list[Curve]:
    """One term of a run by what the logged step trained, smoothed."""
    curves = []
    for task in words.in_order(dict.fromkeys(line["task"] for line in lines if "task" in line)):
        points = values_of(lines, key, where=lambda line, task=task: line.get("task") == task)
        if len(points):
            curves.append(Curve(task, smoothed(points), words.colour_of(task)))
    return curves


def is_logarithmic(curves: Sequence[Curve]) -> bool:
    """Whether the values are all positive and span so much that small ones would not be seen."""
    values = [curve.points[:, 1] for curve in curves if len(curve.points)]
    if not values:
        return False
    low, high = min(v.min() for v in values), max(v.max() for v in values)
    return bool(low > 0 and high / low > LOG_SPAN)
