"""Curves from metrics lines."""

from __future__ import annotations

import numpy as np
import pytest

from unialign_jax.reporting.curves import (
    MOST_RAW,
    Curve,
    is_logarithmic,
    smoothed,
    task_curves,
    term_curves,
    thinned,
    values_of,
)


def lines(values, **more):
    return [{"step": k + 1, "loss": value, **more} for k, value in enumerate(values)]


def test_lines_without_a_finite_value_are_left_out():
    found = values_of([*lines([1.0, float("nan"), 3.0]), {"step": 9, "task": "edit"}], "loss")
    assert found.tolist() == [[1, 1], [3, 3]]
    assert values_of([], "loss").shape == (0, 2)


def test_smoothing_keeps_a_constant_and_takes_noise_away():
    steps = np.arange(1.0, 501.0)
    flat = smoothed(np.stack([steps, np.full(500, 3.0)], 1))
    assert np.allclose(flat[:, 1], 3.0)
    assert flat[0, 0] == 1 and flat[-1, 0] == 500
    noise = np.exp(np.random.default_rng(0).normal(0, 0.5, 500))
    rough = np.stack([steps, noise], 1)
    assert np.std(np.log(smoothed(rough)[:, 1])) < 0.2


def test_positive_values_are_averaged_by_factors():
    values = np.array([1.0, 100.0] * 50)
    middle = smoothed(np.stack([np.arange(100.0), values], 1))[40:60, 1]
    # The geometric mean is 10, the arithmetic one 50.
    assert np.all((middle > 7) & (middle < 14))


def test_few_points_stay_as_they_are_and_many_are_thinned():
    few = np.array([[1.0, 2.0], [2.0, 5.0]])
    assert (smoothed(few) == few).all()
    many = np.stack([np.arange(5000.0)] * 2, 1)
    assert MOST_RAW / 2 < len(thinned(many)) <= MOST_RAW


def test_the_reference_ends_where_the_run_does():
    run = lines([2.0] * 20)
    curves = term_curves(run, lines([1.0] * 60), "loss")
    assert [curve.name for curve in curves] == ["each logged step", "reference", "this run"]
    assert curves[1].points[:, 0].max() <= 20
    assert [curve.style for curve in term_curves(run, [], "loss")] == ["raw", 0]
    assert term_curves(run, [], "loss/text") == []


def test_a_task_has_its_own_curve_and_always_the_same_colour():
    both = [*lines([1.0] * 3, task="edit"), *lines([2.0] * 3, task="generate")]
    assert [(c.name, c.style) for c in task_curves(both, "loss")] == [("generate", 0), ("edit", 3)]
    assert [c.style for c in task_curves(both[:3], "loss")] == [3]


@pytest.mark.parametrize(
    ("values", "logarithmic"), [([1, 100], True), ([1, 3], False), ([0, 100], False)]
)
def test_a_wide_span_of_positive_values_is_shown_by_factors(values, logarithmic):
    points = np.array([[k, value] for k, value in enumerate(values)], float)
    assert is_logarithmic([Curve("x", points)]) is logarithmic
