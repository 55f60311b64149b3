"""Two scenes side by side: which things belong together, what agrees, what is taken for what."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np

from unialign_jax.data.sources.scenes.language import place_name
from unialign_jax.data.sources.scenes.world import LEVELS, Kind, Scene, Thing

# What a thing has, and what a scene has beside its things.
THING_ATTRIBUTES = ("shape", "colour", "size", "place")
ATTRIBUTES = (*THING_ATTRIBUTES, "background", "count")

# Stands for a thing that is not there, and for the background of what is no scene.
NOTHING = "none"

Pair = tuple[Thing | None, Thing | None]


def contents(scene: Scene) -> frozenset[tuple[Kind, int]]:
    """The look and place of every thing, whatever its shift."""
    return frozenset((thing.kind, thing.place) for thing in scene.things)


def pair_things(truth: Scene, read: Scene | None) -> list[Pair]:
    """The things of the truth with those that were read, so that most attributes agree.

    Returns:
      (true thing, what was read for it or None), in the truth's order; then (None, thing) for what
      was read beside.
    """
    true, found = truth.things, read.things if read else ()
    best, most = (), -1.0
    # All ways to give each thing of the shorter list one of the longer: few, with three things.
    slots = max(len(true), len(found))
    for order in itertools.permutations(range(slots), len(true)):
        agreements = sum(
            _agreement(thing, found[k])
            for thing, k in zip(true, order, strict=True)
            if k < len(found)
        )
        if agreements > most:
            best, most = order, agreements
    pairs: list[Pair] = [
        (thing, found[k] if k < len(found) else None) for thing, k in zip(true, best, strict=True)
    ]
    return pairs + [(None, thing) for k, thing in enumerate(found) if k not in best]


def _agreement(a: Thing, b: Thing) -> float:
    """Number of equal attributes; an equal place breaks ties."""
    equal = sum(getattr(a, name) == getattr(b, name) for name in THING_ATTRIBUTES)
    return equal + 0.1 * (a.place == b.place)


def attribute_shares(pairs: Iterable[tuple[Scene, Scene | None]]) -> dict[str, float]:
    """Per attribute, the share that is right.

    Of shape, colour, size and place: the share of the things in the truths; of background and
    count: the share of the scenes. What is no scene has nothing right.

    Args:
      pairs: (truth, what was read).
    """
    right, total = dict.fromkeys(ATTRIBUTES, 0), dict.fromkeys(ATTRIBUTES, 0)
    for truth, read in pairs:
        for thing, found in pair_things(truth, read):
            for name in THING_ATTRIBUTES if thing else ():
                total[name] += 1
                right[name] += found is not None and getattr(thing, name) == getattr(found, name)
        total["background"] += 1
        right["background"] += read is not None and read.background == truth.background
        total["count"] += 1
        right["count"] += read is not None and len(read.things) == len(truth.things)
    return {name: right[name] / total[name] for name in ATTRIBUTES if total[name]}


def confusion(level: str, pairs: Iterable[tuple[Scene, Scene | None]]) -> dict[str, Any]:
    """Per attribute, how often each word was read as which.

    Returns:
      {attribute: {"labels": words and `NOTHING`, "counts": rows of the truth, columns of what was
      read}}. The last column counts things that were not found, the last row things that are not
      there. Without the last row, the counts sum to the things of the truths (background: scenes).
    """
    words = labels(level)
    counts = {name: np.zeros((len(words[name]),) * 2, int) for name in words}

    def count(attribute: str, truth: str, read: str) -> None:
        known = words[attribute]
        counts[attribute][known.index(truth), known.index(read)] += 1

    for truth, read in pairs:
        count("background", truth.background, read.background if read else NOTHING)
        for pair in pair_things(truth, read):
            for name in THING_ATTRIBUTES:
                count(name, *(_word(level, thing, name) for thing in pair))
    return {name: {"labels": list(words[name]), "counts": counts[name].tolist()} for name in words}


def labels(level: str) -> dict[str, tuple[str, ...]]:
    """The words of each attribute, `NOTHING` last."""
    found = LEVELS[level]
    words = {
        "shape": found.shapes,
        "colour": found.colours,
        "size": found.sizes,
        "place": tuple(place_name(found, place) for place in range(found.places)),
        "background": found.backgrounds,
    }
    return {name: (*known, NOTHING) for name, known in words.items()}


def _word(level: str, thing: Thing | None, attribute: str) -> str:
    if thing is None:
        return NOTHING
    return (
        place_name(LEVELS[level], thing.place)
        if attribute == "place"
        else getattr(thing, attribute)
    )
