"""Sides in turns: checked against each other first, then timed round by round."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

# Relative, of losses, gradient norms and velocities.
TOLERANCES = {"float32": 1e-4, "bfloat16": 1e-2}
OURS = "jax"


def check(sides: Sequence[Any], dtype: str) -> dict[str, list[float]]:
    """The values that every side computes from the same weights and draws.

    Raises:
      SystemExit: they differ by more than rounding; nothing is timed then.
    """
    values = {side.name: side.check() for side in sides}
    reference = np.asarray(next(iter(values.values())))
    for name, found in values.items():
        error = float(np.max(np.abs(np.asarray(found) / reference - 1)))
        if not error <= TOLERANCES[dtype]:
            raise SystemExit(
                f"{name} differs from {next(iter(values))} by {error:.2g} (relative), more than "
                f"{TOLERANCES[dtype]:g}: {values}. Not timed."
            )
    return values


def alternate(sides: Sequence[Any], rounds: int, steps: int) -> dict[str, dict[str, list[float]]]:
    """Seconds and processor seconds per step of every side in every round.

    The order turns from round to round, so that no side always follows the same other one.
    """
    found: dict[str, dict[str, list[float]]] = {
        side.name: {"seconds": [], "cpu_seconds": []} for side in sides
    }
    for side in sides:
        side.run(1)
    for index in range(rounds):
        turn = index % len(sides)
        for side in [*sides[turn:], *sides[:turn]]:
            seconds, cpu_seconds = side.run(steps)
            found[side.name]["seconds"].append(seconds)
            found[side.name]["cpu_seconds"].append(cpu_seconds)
        line = "  ".join(f"{name} {v['seconds'][-1]:.4g}" for name, v in found.items())
        print(f"  round {index + 1}: {line} s", file=sys.stderr, flush=True)
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest, to four digits."""
    return {
        "median": _digits(statistics.median(values)),
        "min": _digits(min(values)),
        "max": _digits(max(values)),
    }


def ratios(times: dict[str, dict[str, list[float]]], key: str = "seconds") -> dict[str, Any]:
    """How many times as fast as the other ones ours is, round by round: above 1 we are faster.

    Returns:
      Per other side the median ratio, its quartiles, least and greatest; and under "better" those
      of the one with the smaller median.
    """
    ours = np.asarray(times[OURS][key])
    found: dict[str, Any] = {}
    for name, measured in times.items():
        if name != OURS:
            ratio = np.asarray(measured[key]) / ours
            low, high = np.quantile(ratio, (0.25, 0.75))
            quartiles = {"quartile_1": _digits(low), "quartile_3": _digits(high)}
            found[name] = spread(list(map(float, ratio))) | quartiles
    if found:
        best = min(found, key=lambda name: statistics.median(times[name][key]))
        found["better"] = {"is": best, **found[best]}
    return found


def _digits(value: float) -> float:
    return float(f"{value:.4g}")
