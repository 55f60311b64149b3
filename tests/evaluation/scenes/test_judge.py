"""Verdicts: the truth is right, anything else is not, and nothing makes the judge stumble."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation.scenes.stand_ins import noise
from unialign_jax.data.sources.scenes.drawing import render
from unialign_jax.data.sources.scenes.edits import KINDS
from unialign_jax.data.sources.scenes.language import captions
from unialign_jax.data.sources.scenes.world import LEVELS, Scene, Thing, same
from unialign_jax.data.tasks import Task
from unialign_jax.evaluation.scenes.items import make_item, make_items
from unialign_jax.evaluation.scenes.judge import judge

DEMO = LEVELS["demo"]


def edit(index: int):
    return make_item(DEMO, Task.EDIT, 16, index, seed=0, held_out=True)


def elsewhere(item) -> Scene | None:
    """The truth of an edit with a mistake at a place that it has nothing to do with."""
    (source,), truth = item.example.sources, item.example.truth
    if source.background != truth.background:
        return None
    touched = {thing.place for thing in set(source.things) ^ set(truth.things)}
    place = next(place for place in range(DEMO.places) if place not in touched)
    there = [thing for thing in truth.things if thing.place == place]
    rest = tuple(thing for thing in truth.things if thing.place != place)
    if there:
        colour = next(word for word in DEMO.colours if word != there[0].colour)
        wrong = dataclasses.replace(there[0], colour=colour)
    else:
        wrong = Thing("small", "red", "cross", place)
    return Scene.of(DEMO, truth.background, (*rest, wrong))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_an_edit_is_right_when_it_is_the_truth_and_wrong_when_it_is_the_source(index):
    item = edit(index)
    truth, source = judge([item, item], [item.truth_image(), item.sources[0]])
    assert (truth.score, truth.right, truth.kept) == (1, True, True)
    assert (source.score, source.right) == (0, False)
    # Nothing was done, so the rest is as it was.
    assert source.kept


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_an_edit_that_changes_another_place_has_not_kept_the_rest(index):
    item = edit(index)
    wrong = elsewhere(item)
    if wrong is not None:
        (verdict,) = judge([item], [render(wrong, 16)])
        assert (verdict.score, verdict.right, verdict.kept) == (0, False, False)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 3))
def test_an_edit_with_a_stain_elsewhere_is_right_but_has_not_kept_the_rest(index, corner):
    item = edit(index)
    made = item.truth_image().copy()
    untouched = (item.sources[0] == made).all(-1)
    rows, columns = np.s_[:8] if corner < 2 else np.s_[8:], np.s_[:8] if corner % 2 else np.s_[8:]
    stain = np.zeros((16, 16), bool)
    stain[rows, columns] = True
    made[stain & untouched] ^= 32
    (verdict,) = judge([item], [made])
    if (stain & untouched).sum() >= 4:
        assert verdict.kept is False
        assert verdict.score == 0


def test_every_kind_of_edit_is_among_the_items():
    assert {edit(index).kind for index in range(80)} == set(KINDS)


@pytest.mark.parametrize("level", LEVELS)
def test_every_wording_of_a_caption_is_right_and_another_scene_is_wrong(level):
    items = make_items(LEVELS[level], Task.CAPTION, LEVELS[level].pixels[0], 20, seed=0)
    for item, other in zip(items, items[1:], strict=False):
        texts = [form(text) for text in captions(item.example.truth) for form in (str, str.upper)]
        verdicts = judge([item] * len(texts), texts)
        assert all(verdict.right for verdict in verdicts)
        (wrong,) = judge([item], [captions(other.example.truth)[0]])
        assert wrong.score == 0
        assert wrong.scene is not None


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=80))
def test_any_text_can_be_judged(text):
    for task in (Task.CAPTION, Task.ANSWER):
        item = make_item(DEMO, task, 16, 0, seed=0, held_out=True)
        assert judge([item], [text])[0].score in (0, 1)


def test_an_answer_is_right_whatever_its_case_and_spaces():
    item = make_item(DEMO, Task.ANSWER, 16, 3, seed=0, held_out=True)
    right = f"  {item.example.answer.upper()} \n"
    assert [v.score for v in judge([item] * 3, [right, "", item.example.answer + " x"])] == [
        1,
        0,
        0,
    ]


@pytest.mark.parametrize("task", [Task.GENERATE, Task.COMPOSE])
@pytest.mark.parametrize(("level", "pixels"), [("demo", 16), ("full", 32)])
def test_pictures_are_right_when_every_attribute_is(task, level, pixels):
    items = make_items(LEVELS[level], task, pixels, 12, seed=0)
    truths = [item.truth_image() for item in items]
    assert all(verdict.score == 1 for verdict in judge(items, truths))
    others = judge(items, truths[1:] + truths[:1])
    for item, verdict, other in zip(items, others, items[1:] + items[:1], strict=True):
        assert verdict.right == same(item.example.truth, other.example.truth)
    assert not any(verdict.score for verdict in judge(items, [noise(k, pixels) for k in range(12)]))


def test_a_known_scene_is_not_read_again():
    (item,) = make_items(DEMO, Task.GENERATE, 16, 1, seed=0)
    blank = np.zeros((16, 16, 3), np.uint8)
    assert judge([item], [blank], [item.example.truth])[0].score == 1


def test_no_items_have_no_verdicts():
    assert judge([], []) == []
