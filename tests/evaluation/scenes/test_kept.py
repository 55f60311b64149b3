"""Whether an edit leaves the rest alone."""

from __future__ import annotations

import numpy as np
import pytest

from unialign_jax.data.sources.scenes.drawing import render
from unialign_jax.data.sources.scenes.world import Scene, Thing
from unialign_jax.evaluation.scenes.kept import drift, keeps_scene

RED = Thing("large", "red", "circle", 0)
GREEN = Thing("large", "green", "circle", 0)
BLUE = Thing("small", "blue", "square", 3)
PINK = Thing("small", "pink", "square", 3)


def scene(*things: Thing, background: str = "black") -> Scene:
    return Scene("demo", background, things)


@pytest.mark.parametrize(
    ("truth", "read", "kept"),
    [
        (scene(GREEN, BLUE), scene(GREEN, BLUE), True),
        # Not done, or done wrong, but in its place.
        (scene(GREEN, BLUE), scene(RED, BLUE), True),
        (scene(GREEN, BLUE), scene(BLUE), True),
        (scene(GREEN, BLUE), scene(GREEN), False),
        (scene(GREEN, BLUE), scene(GREEN, PINK), False),
        (scene(GREEN, BLUE), scene(GREEN, BLUE, Thing("small", "red", "cross", 1)), False),
        (scene(GREEN, BLUE), scene(GREEN, BLUE, background="white"), False),
        (scene(RED, BLUE, background="white"), scene(RED, BLUE, background="grey"), True),
        (scene(RED, BLUE, background="white"), scene(RED, background="white"), False),
        (scene(BLUE), scene(BLUE), True),
        (scene(BLUE), scene(PINK), False),
    ],
)
def test_things_and_background_that_were_not_meant_stay(truth, read, kept):
    assert keeps_scene(scene(RED, BLUE), truth, read) is kept


def test_drift_is_the_mean_error_of_the_worst_place():
    source = np.zeros((8, 8, 3), np.uint8)
    truth = source.copy()
    truth[:4, :4] = 200
    made = truth.copy()
    made[:4, :4] = 0
    assert drift(source, truth, made, 2) == 0
    made[4:, 4:] = 10
    made[6:, 6:, 0] = 40
    # In the last place: 12 pixels off by 10, 4 by (40 + 10 + 10) / 3.
    assert drift(source, truth, made, 2) == pytest.approx((12 * 10 + 4 * 20) / 16)


def test_only_pixels_that_the_edit_leaves_are_looked_at():
    before, after = render(scene(RED, BLUE), 16), render(scene(GREEN, BLUE), 16)
    made = after.copy()
    made[(before != after).any(-1)] = 255
    assert drift(before, after, made, 2) == 0
    white = render(scene(RED, BLUE, background="white"), 16)
    # Of a new background, the things are what stays.
    assert drift(before, white, white, 2) == 0
    assert drift(before, white, render(scene(RED, PINK, background="white"), 16), 2) > 40


def test_where_everything_may_change_nothing_drifts():
    source, truth = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 9, np.uint8)
    assert drift(source, truth, source, 2) == 0
