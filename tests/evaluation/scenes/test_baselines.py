"""What needs no model: the most frequent and the nearest training example."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from unialign_jax.data.sources.scenes.world import LEVELS, same
from unialign_jax.data.tasks import Task
from unialign_jax.evaluation.scenes.baselines import TrainingSet, baselines
from unialign_jax.evaluation.scenes.items import TASKS, make_item, make_items

DEMO = LEVELS["demo"]


def training(task: Task, count: int = 120, seed: int = 0) -> TrainingSet:
    return TrainingSet(DEMO, task, 16, count, seed)


@pytest.mark.parametrize("task", TASKS)
def test_equal_calls_give_equal_baselines(task):
    items = make_items(DEMO, task, 16, 20, seed=0, split="seen")
    assert baselines(items, training(task)) == baselines(items, training(task))


@pytest.mark.parametrize("task", TASKS)
def test_an_item_of_the_training_set_is_nearest_to_itself(task):
    known = training(task)
    found = known.nearest(known.items[:30])
    for item, near in zip(known.items[:30], found, strict=True):
        assert item.text == near.text
        assert all(map(np.array_equal, item.sources, near.sources))
    assert baselines(known.items[:30], known)["nearest"] > 0.9


def test_the_nearest_prompt_shares_most_words():
    known = training(Task.GENERATE)
    item = make_item(DEMO, Task.GENERATE, 16, 0, seed=9, held_out=True)

    def overlap(other: str) -> float:
        a, b = (set(text.replace(",", "").split()) for text in (item.text, other))
        return len(a & b) / len(a | b)

    (found,) = known.nearest([item])
    assert overlap(found.text) == max(overlap(other.text) for other in known.items)


def test_of_equal_instructions_the_nearest_picture_decides():
    known = training(Task.PERCEIVE, 200)
    item = next(
        item
        for item in make_items(DEMO, Task.PERCEIVE, 16, 50, seed=7, split="seen")
        if item.kind == "depth"
    )
    (found,) = known.nearest([item])
    alike = [other for other in known.items if other.text == item.text]
    assert len(alike) > 5

    def distance(other) -> float:
        return float(np.square(other.sources[0].astype(float) - item.sources[0]).sum())

    assert found.text == item.text
    assert distance(found) == min(map(distance, alike))


def test_the_nearest_composition_has_as_many_references():
    items = make_items(DEMO, Task.COMPOSE, 16, 20, seed=3)
    for item, near in zip(items, training(Task.COMPOSE).nearest(items), strict=True):
        assert len(item.sources) == len(near.sources)


def test_the_majority_answer_is_the_most_frequent_of_its_kind():
    known = training(Task.ANSWER, 200)
    items = make_items(DEMO, Task.ANSWER, 16, 8, seed=5)
    for item, found in zip(items, known.majority(items), strict=True):
        counts = Counter(other.example.answer for other in known.items if other.kind == item.kind)
        assert found.kind == item.kind
        assert counts[found.example.answer] == max(counts.values())


def test_the_majority_scene_is_the_most_frequent():
    known = training(Task.GENERATE, 400)
    (found,) = known.majority(known.items[:1])

    def times(scene) -> int:
        return sum(same(scene, other.example.truth) for other in known.items)

    assert times(found.example.truth) == max(times(item.example.truth) for item in known.items[:60])


def test_a_copy_of_the_source_is_no_edit():
    items = make_items(DEMO, Task.EDIT, 16, 20, seed=0)
    found = baselines(items, training(Task.EDIT))
    assert set(found) == {"majority", "nearest", "copy"}
    assert found["copy"] == 0


def test_a_kind_that_training_lacks_takes_any():
    known = training(Task.ANSWER, 1)
    items = make_items(DEMO, Task.ANSWER, 16, 4, seed=0)
    assert known.majority(items) == [known.items[0]] * 4
