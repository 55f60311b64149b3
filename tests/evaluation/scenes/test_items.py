"""Items: equal calls give equal ones, and the splits keep apart."""

from __future__ import annotations

import numpy as np
import pytest

from unialign_jax.data.sources.scenes.drawing import render
from unialign_jax.data.sources.scenes.language import captions
from unialign_jax.data.sources.scenes.world import LEVELS, scene_is_held_out
from unialign_jax.data.tasks import Task
from unialign_jax.evaluation.scenes.items import IMAGE_TASKS, TASKS, make_item, make_items
from unialign_jax.sampling.requests import INPUTS, make_request

DEMO = LEVELS["demo"]


@pytest.mark.parametrize("task", TASKS)
def test_equal_calls_give_equal_items(task):
    first, second, other = (make_items(DEMO, task, 16, 6, seed=s) for s in (3, 3, 4))
    assert first == second
    assert first != other
    assert [item.kind for item in first] == [item.kind for item in second]


@pytest.mark.parametrize("task", TASKS)
def test_items_have_what_the_task_takes(task):
    for item in make_items(DEMO, task, 16, 12, seed=0):
        takes = INPUTS[task]
        assert bool(item.text) == (takes.text is not None)
        assert takes.images[0] <= len(item.sources) <= takes.images[1]
        assert all(s.shape == (16, 16, 3) and s.dtype == np.uint8 for s in item.sources)
        assert (item.truth_image() is not None) == takes.makes_image == (task in IMAGE_TASKS)
        assert bool(item.truth_text()) != takes.makes_image


def test_prompts_go_round_the_wordings():
    items = make_items(DEMO, Task.GENERATE, 16, 9, seed=0)
    number = len(items[0].example.captions)
    for index, item in enumerate(items):
        assert item.text == captions(item.example.truth)[index % number]


def test_a_caption_and_an_answer_are_asked_of_the_picture_of_the_truth():
    for task in (Task.CAPTION, Task.ANSWER):
        for item in make_items(DEMO, task, 16, 4, seed=0):
            assert np.array_equal(item.sources[0], render(item.example.truth, 16))


@pytest.mark.parametrize("task", TASKS)
def test_held_out_items_hold_a_combination_that_seen_ones_never_do(task):
    held_out = make_items(DEMO, task, 16, 20, seed=0)
    seen = make_items(DEMO, task, 16, 20, seed=0, split="seen")

    def scenes(item):
        return (item.example.truth, *item.example.sources)

    assert all(any(map(scene_is_held_out, scenes(item))) for item in held_out)
    assert not any(any(map(scene_is_held_out, scenes(item))) for item in seen)


def test_seen_items_are_not_the_examples_of_training():
    seen = make_items(DEMO, Task.EDIT, 16, 200, seed=0, split="seen")
    training = [make_item(DEMO, Task.EDIT, 16, k, seed=0, held_out=False) for k in range(200)]
    assert not {item.example.id for item in seen} & {item.example.id for item in training}
    assert sum(a.example.truth == b.example.truth for a, b in zip(seen, training, strict=True)) < 5


def test_instructions_for_maps_are_taken_as_they_are():
    # A single word would be replaced by the sentence of a kind of map.
    for level in LEVELS.values():
        for item in make_items(level, Task.PERCEIVE, level.pixels[0], 40, seed=0):
            assert len(item.text.split()) > 1


def test_requests_are_made_of_the_items():
    class Tokenizer:
        mask_id = 0

        def encode(self, text, length):
            return np.zeros(length, np.int32), False

        def encode_question(self, turns, length):
            return np.zeros(length, np.int32), False

    class Model:
        tokenizer, image_size, text_length = Tokenizer(), 16, 24

    for task in TASKS:
        for item in make_items(DEMO, task, 16, 3, seed=0):
            request = make_request(Model(), task, item.text, list(item.sources))  # type: ignore
            for given, used in zip(item.sources, request.images, strict=True):
                assert np.array_equal(given, used), "the model sees the pixels as they are"
