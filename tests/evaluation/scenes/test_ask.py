"""Putting items to a model: in batches of one form, whatever comes back."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.scenes.stand_ins import Noise, Oracle
from unialign_jax.data.sources.scenes.world import LEVELS
from unialign_jax.data.tasks import Task
from unialign_jax.evaluation.scenes.ask import as_picture, ask
from unialign_jax.evaluation.scenes.items import TASKS, make_items

DEMO = LEVELS["demo"]


@pytest.mark.parametrize("task", TASKS)
def test_outputs_come_in_the_order_of_the_items(task):
    items, done = make_items(DEMO, task, 16, 11, seed=0), []
    outputs = ask(Oracle(DEMO, 16, 11), items, seed=0, batch=4, advance=done.append)
    for item, output in zip(items, outputs, strict=True):
        truth = item.truth_image()
        right = output == item.truth_text() if truth is None else np.array_equal(output, truth)
        assert right
    assert sum(done) == 11


def test_compositions_are_sampled_by_their_number_of_references():
    oracle = Oracle(DEMO, 16, 20)
    items = make_items(DEMO, Task.COMPOSE, 16, 20, seed=0)
    ask(oracle, items, seed=0, batch=8)
    ones = sum(len(item.sources) == 1 for item in items)
    sizes = [size for _, size, _ in oracle.calls]
    assert sizes == [min(8, left) for n in (ones, 20 - ones) for left in range(n, 0, -8)]


def test_an_output_does_not_depend_on_the_batch():
    items = make_items(DEMO, Task.GENERATE, 16, 7, seed=0)
    first, second, other = (
        ask(Noise(16), items, seed=seed, batch=batch) for seed, batch in ((1, 2), (1, 7), (2, 7))
    )
    assert all(map(np.array_equal, first, second))
    assert not any(map(np.array_equal, first, other))


@pytest.mark.parametrize(
    "output",
    [
        Image.new("RGB", (16, 16)),
        Image.new("L", (16, 16)),
        Image.new("RGBA", (40, 20)),
        np.zeros((16, 16, 3), np.uint8),
        np.zeros((9, 31), np.uint8),
    ],
)
def test_any_image_becomes_a_picture_of_the_size(output):
    picture = as_picture(output, 16)
    assert picture.shape == (16, 16, 3)
    assert picture.dtype == np.uint8
