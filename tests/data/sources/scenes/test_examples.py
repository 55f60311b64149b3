"""Examples of every task: pure functions of their index, with a truth that fits the words."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unialign_jax.data import images
from unialign_jax.data.records import deserialize, serialize
from unialign_jax.data.sources.scenes import drawing, edits, questions
from unialign_jax.data.sources.scenes.examples import (
    MAP_KINDS,
    Example,
    all_texts,
    make_example,
    source_images,
    target_image,
    to_record,
)
from unialign_jax.data.sources.scenes.language import parse_caption, place_name, point_at, refer
from unialign_jax.data.sources.scenes.world import LEVELS, Scene, same, scene_is_held_out
from unialign_jax.data.tasks import TRAINING_TASKS, Task
from unialign_jax.data.tokenizer import word_tokenizer

levels = st.sampled_from(list(LEVELS.values()))
tasks = st.sampled_from(list(TRAINING_TASKS))
indices = st.integers(0, 10**6)


def scenes_of(example: Example) -> tuple[Scene, ...]:
    return (example.truth, *example.sources)


@settings(deadline=None, max_examples=60)
@given(levels, tasks, indices, st.booleans())
def test_an_example_is_a_function_of_its_index_and_stays_on_its_side(level, task, index, held_out):
    example = make_example(level, task, index, seed=3, held_out=held_out)
    assert example == make_example(level, task, index, seed=3, held_out=held_out)
    assert any(scene_is_held_out(scene) for scene in scenes_of(example)) == held_out
    for text in example.captions:
        read = parse_caption(text, level)
        assert read is not None and same(read, example.truth)


def test_seeds_tasks_and_indices_give_other_examples() -> None:
    level = LEVELS["full"]
    made = {
        make_example(level, task, index, seed=seed, held_out=False).truth
        for task in TRAINING_TASKS
        for index in range(5)
        for seed in range(3)
    }
    assert len(made) > 70


@settings(deadline=None, max_examples=80)
@given(levels, indices)
def test_an_edit_changes_one_thing_or_the_background_and_nothing_else(level, index) -> None:
    example = make_example(level, Task.EDIT, index, seed=0, held_out=False)
    (source,) = example.sources
    before, after = set(source.things), set(example.truth.things)
    assert not same(source, example.truth)
    gone, come = before - after, after - before
    if example.kind == "background":
        assert not gone and not come and source.background != example.truth.background
        return
    assert source.background == example.truth.background
    wanted = {"add": (0, 1), "remove": (1, 0)}.get(example.kind, (1, 1))
    assert (len(gone), len(come)) == wanted
    assert example.subject in (come or gone)
    if gone and come:
        old, new = gone.pop(), come.pop()
        changed = {
            name
            for name in ("size", "colour", "shape", "place")
            if getattr(old, name) != getattr(new, name)
        }
        name = {"recolour": "colour", "replace": "shape", "resize": "size", "move": "place"}
        assert changed == {name[example.kind]}
        assert point_at(level, old) in example.instruction
        value = getattr(new, name[example.kind])
        value = place_name(level, value) if example.kind == "move" else value
        assert example.instruction.endswith(value)


def test_all_kinds_of_edits_maps_and_questions_occur_about_equally() -> None:
    for task, kinds in (
        (Task.EDIT, edits.KINDS),
        (Task.PERCEIVE, MAP_KINDS),
        (Task.ANSWER, questions.KINDS),
    ):
        made = [make_example(LEVELS["demo"], task, i, seed=0, held_out=True) for i in range(700)]
        shares = {kind: sum(e.kind == kind for e in made) / len(made) for kind in kinds}
        assert min(shares.values()) > 0.7 / len(kinds), shares
        assert sum(shares.values()) == pytest.approx(1)


@settings(deadline=None, max_examples=60)
@given(levels, indices, st.booleans())
def test_answers_are_true(level, index, held_out) -> None:
    example = make_example(level, Task.ANSWER, index, seed=0, held_out=held_out)
    things, words = example.truth.things, example.question.rstrip("?").split()
    names = [place_name(level, place) for place in range(level.places)]
    if example.kind == "count":
        colour = words[2] if len(words) == 4 else None
        count = sum(colour in (None, thing.colour) for thing in things)
        assert questions.NUMBERS[count] == example.answer
    elif words[0] == "where":
        (thing,) = [t for i, t in enumerate(things) if refer(things, i) in example.question]
        assert example.answer == place_name(level, thing.place)
    elif words[0] == "is":
        first, second = (
            next(t for i, t in enumerate(things) if refer(things, i) == name)
            for name in _two_names(example.question)
        )
        (row_a, column_a), (row_b, column_b) = (
            divmod(t.place, level.grid) for t in (first, second)
        )
        holds = {
            " above ": row_a < row_b,
            " below ": row_a > row_b,
            " left of ": column_a < column_b,
            " right of ": column_a > column_b,
        }
        (held,) = [value for word, value in holds.items() if word in example.question]
        assert example.answer == ("yes" if held else "no")
    else:
        place = example.question.rstrip("?").split(" is ")[1]
        if place in names:
            (thing,) = [t for t in things if t.place == names.index(place)]
        else:
            (thing,) = [t for t in things if words[-1] in t.kind]
        assert example.answer == getattr(thing, example.kind)


def _two_names(question: str) -> tuple[str, str]:
    for word in (" above ", " below ", " left of ", " right of "):
        if word in question:
            first, second = question.removeprefix("is ").rstrip("?").split(word)
            return first, second
    raise AssertionError(question)


def test_yes_and_no_are_about_as_frequent() -> None:
    made = [
        make_example(LEVELS["demo"], Task.ANSWER, i, seed=0, held_out=False) for i in range(2000)
    ]
    said = [e.answer for e in made if e.answer in ("yes", "no")]
    assert 0.4 < said.count("yes") / len(said) < 0.6


@settings(deadline=None, max_examples=40)
@given(levels, indices)
def test_references_show_each_thing_of_a_composition_alone(level, index) -> None:
    example = make_example(level, Task.COMPOSE, index, seed=0, held_out=True)
    shown = [thing.kind for source in example.sources for thing in source.things]
    assert all(len(source.things) == 1 for source in example.sources)
    assert sorted(shown) == sorted(thing.kind for thing in example.truth.things)
    assert 1 <= len(shown) <= level.most_references
    for thing in example.truth.things:
        assert place_name(level, thing.place) in example.instruction
    assert example.instruction.endswith(f"on {example.truth.background}")


@pytest.mark.parametrize("references", [1, 2, 3])
def test_the_number_of_references_can_be_asked_for(references: int) -> None:
    example = make_example(
        LEVELS["full"], Task.COMPOSE, 0, seed=0, held_out=False, references=references
    )
    assert len(example.sources) == references


@settings(deadline=None, max_examples=30)
@given(levels, tasks, indices)
def test_records_are_valid_and_hold_the_pictures_bit_for_bit(level, task, index) -> None:
    example = make_example(level, task, index, seed=0, held_out=False)
    pixels = level.pixels[0]
    record = deserialize(serialize(to_record(example, pixels).validate()))
    assert np.array_equal(images.decode(record.target), target_image(example, pixels))
    wanted = () if task is Task.ANSWER else source_images(example, pixels)
    for stored, picture in zip(record.conditions, wanted, strict=True):
        assert np.array_equal(images.decode(stored), picture)
    assert record.captions == example.captions
    assert record.map_kind == (example.kind if task is Task.PERCEIVE else "")


def test_a_segmentation_is_of_the_thing_that_was_named() -> None:
    level = LEVELS["demo"]
    made = [make_example(level, Task.PERCEIVE, i, seed=0, held_out=False) for i in range(60)]
    for example in (e for e in made if e.kind == "segment"):
        assert example.subject is not None
        assert point_at(LEVELS["demo"], example.subject) in example.instruction
        alone = dataclasses.replace(example.truth, things=(example.subject,))
        assert np.array_equal(target_image(example, 16), drawing.segmentation(alone, 0, 16))


@settings(deadline=None, max_examples=60)
@given(levels, tasks, indices, st.booleans())
def test_the_tokenizer_has_a_token_for_every_word(level, task, index, held_out) -> None:
    tokenizer = word_tokenizer(all_texts(level))
    example = make_example(level, task, index, seed=0, held_out=held_out)
    asked = f"Q: {example.question} A: {example.answer}" if example.question else ""
    for text in (*example.captions, example.instruction, asked):
        ids = tokenizer.pieces(text)
        assert 2 not in ids, text
        assert tokenizer.decode(ids) == text
        words = text.replace(",", " ,").replace("?", " ?").replace(":", " :").split()
        assert len(ids) == len(words)
