"""Overlap of maps with the truth, on maps of a few pixels and on those of the world."""

from __future__ import annotations

import numpy as np
import pytest

from unialign_jax.data.sources.scenes.world import LEVELS
from unialign_jax.data.tasks import Task
from unialign_jax.evaluation.scenes.items import make_items
from unialign_jax.evaluation.scenes.maps import DEPTH_TOLERANCE, map_iou


def grey(rows: list[list[int]]) -> np.ndarray:
    return np.repeat(np.array(rows, np.uint8)[..., None], 3, axis=-1)


@pytest.mark.parametrize("kind", ["segment", "edges"])
def test_a_mask_counts_pixels_above_half(kind):
    truth = grey([[255, 255, 0], [255, 255, 0], [0, 0, 0]])
    made = grey([[128, 255, 127], [0, 200, 255], [0, 0, 0]])
    # Three pixels of both, five of either.
    assert map_iou(truth, made, kind) == pytest.approx(3 / 5)


def test_depth_is_the_mean_over_the_depths_of_the_truth():
    truth = grey([[100, 100, 0], [200, 200, 0], [0, 0, 0]])
    made = grey([[100, 0, 0], [200, 200, 200], [0, 0, 0]])
    assert map_iou(truth, made, "depth") == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_depth_allows_a_tolerance_and_no_more():
    truth = grey([[150, 0]])
    for error, score in ((DEPTH_TOLERANCE, 1), (DEPTH_TOLERANCE + 1, 0)):
        assert map_iou(truth, grey([[150 - error, 0]]), "depth") == score
        assert map_iou(truth, grey([[150 + error, 0]]), "depth") == score


def test_the_tolerance_tells_the_rows_of_places_apart():
    from unialign_jax.data.sources.scenes.drawing import depth_of
    from unialign_jax.data.sources.scenes.world import Thing

    for level in LEVELS.values():
        rows = [
            depth_of(level.name, Thing(size, "red", "circle", row * level.grid))
            for size in level.sizes
            for row in range(level.grid)
        ]
        steps = np.diff(np.unique(np.round(rows)))
        assert min(steps) > 2 * DEPTH_TOLERANCE


def test_a_map_without_anything_wants_nothing():
    blank = grey([[0, 0]])
    assert map_iou(blank, blank, "depth") == 1
    assert map_iou(blank, blank, "segment") == 1
    assert map_iou(blank, grey([[0, 90]]), "depth") == 0


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="normals"):
        map_iou(grey([[0]]), grey([[0]]), "normals")


@pytest.mark.parametrize(("level", "pixels"), [("demo", 16), ("full", 32)])
def test_the_truth_of_every_map_scores_1_and_blank_ones_0(level, pixels):
    items = make_items(LEVELS[level], Task.PERCEIVE, pixels, 60, seed=0)
    assert {item.kind for item in items} == {"segment", "depth", "edges"}
    for item in items:
        truth = item.truth_image()
        assert map_iou(truth, truth, item.kind) == 1
        assert map_iou(truth, np.zeros_like(truth), item.kind) == 0
        # All white is right where something is, and there is little.
        assert map_iou(truth, np.full_like(truth, 255), item.kind) < 0.5
