"""Confidence intervals, against numbers of SciPy (`binomtest(...).proportion_ci("wilson")`)."""

from __future__ import annotations

import numpy as np
import pytest

from unialign_jax.evaluation.scenes.intervals import normal, wilson


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [
        (0, 10, 0.0, 0.2775328),
        (10, 10, 0.7224672, 1.0),
        (95, 100, 0.8882495, 0.9784563),
        (190, 200, 0.9104219, 0.9726174),
        (1, 3, 0.0614919, 0.7923404),
    ],
)
def test_the_interval_of_a_share_is_wilsons(right, total, low, high):
    assert wilson(right, total) == pytest.approx((low, high), abs=1e-6)


def test_nothing_counted_says_nothing():
    assert wilson(0, 0) == (0, 1)
    assert normal([0.4]) == (0, 1)


def test_the_interval_of_a_mean_covers_it_in_95_of_100_draws():
    rng = np.random.default_rng(0)
    draws = rng.beta(4, 2, size=(1000, 80))
    held = [low <= 4 / 6 <= high for low, high in map(normal, draws)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.02)


def test_the_interval_of_a_mean_stays_within_0_and_1():
    assert normal([1.0, 1.0, 0.7]) == pytest.approx((0.704, 1.0), abs=1e-3)
