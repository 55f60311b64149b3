"""Two scenes side by side: pairs of things, shares of attributes, confusion."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from unialign_jax.data.sources.scenes.world import LEVELS, Scene, Thing
from unialign_jax.evaluation.scenes.compare import (
    NOTHING,
    attribute_shares,
    confusion,
    pair_things,
)

RED = Thing("large", "red", "circle", 0)
BLUE = Thing("small", "blue", "square", 3)


def scene(*things: Thing, background: str = "black") -> Scene:
    return Scene("demo", background, things)


@st.composite
def scenes(draw, most: int = 4):
    level = LEVELS["demo"]
    places = draw(st.lists(st.integers(0, 3), unique=True, max_size=most))
    kinds = [draw(st.sampled_from(level.kinds)) for _ in places]
    things = tuple(Thing(*kind, place) for kind, place in zip(kinds, places, strict=True))
    return Scene(level.name, draw(st.sampled_from(level.backgrounds)), things)


def test_things_are_paired_by_what_they_share():
    moved = Thing("large", "red", "circle", 3)
    other = Thing("small", "blue", "square", 0)
    assert pair_things(scene(RED, BLUE), scene(other, moved)) == [(RED, moved), (BLUE, other)]


def test_of_equal_agreement_the_same_place_decides():
    here = Thing("small", "green", "circle", 0)
    there = Thing("small", "green", "circle", 1)
    true = Thing("large", "red", "circle", 0)
    same_words = Thing("large", "green", "circle", 1)
    assert pair_things(scene(true), scene(there, here))[0] == (true, here)
    assert pair_things(scene(true), scene(same_words, here))[0] == (true, here)


def test_what_is_missing_or_too_much_is_paired_with_nothing():
    assert pair_things(scene(RED, BLUE), scene(BLUE)) == [(RED, None), (BLUE, BLUE)]
    assert pair_things(scene(RED), scene(BLUE, RED)) == [(RED, RED), (None, BLUE)]
    assert pair_things(scene(RED), None) == [(RED, None)]


def test_shares_count_things_and_scenes():
    recoloured = Thing("large", "green", "circle", 0)
    shares = attribute_shares(
        [
            (scene(RED, BLUE), scene(recoloured, BLUE)),
            (scene(RED), None),
            (scene(BLUE), scene(BLUE, RED, background="white")),
        ]
    )
    assert shares == {
        "shape": 3 / 4,
        "colour": 2 / 4,
        "size": 3 / 4,
        "place": 3 / 4,
        "background": 1 / 3,
        "count": 1 / 3,
    }


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(scenes(2), st.none() | scenes(4)), min_size=1, max_size=6))
def test_confusion_counts_every_thing_once(pairs):
    tables = confusion("demo", pairs)
    things = sum(len(truth.things) for truth, _ in pairs)
    for name, table in tables.items():
        counts = np.array(table["counts"])
        assert counts.shape == (len(table["labels"]),) * 2
        assert table["labels"][-1] == NOTHING
        assert counts[:-1].sum() == (len(pairs) if name == "background" else things)
        # What was read beside stands in the last row; together the columns hold what was read.
        read = sum(len(found.things) for _, found in pairs if found)
        if name != "background":
            assert counts[:, :-1].sum() == read


@settings(max_examples=40, deadline=None)
@given(scenes(4))
def test_a_scene_read_right_is_on_the_diagonal(truth):
    for table in confusion("demo", [(truth, truth)]).values():
        counts = np.array(table["counts"])
        assert counts.sum() == np.trace(counts)
    shares = attribute_shares([(truth, truth)])
    assert set(shares.values()) == {1.0}


def test_confusion_says_what_was_taken_for_what():
    recoloured = Thing("large", "green", "circle", 0)
    table = confusion("demo", [(scene(RED), scene(recoloured))])["colour"]
    labels = table["labels"]
    assert table["counts"][labels.index("red")][labels.index("green")] == 1
