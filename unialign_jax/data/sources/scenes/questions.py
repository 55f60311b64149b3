"""Questions about scenes and their answers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from unialign_jax.data.sources.scenes.language import place_name, refer
from unialign_jax.data.sources.scenes.world import Level, Scene, Thing

NUMBERS = ("zero", "one", "two", "three")

_QuestionAndAnswer = tuple[str, str]


def _pick(scene: Scene, rng: np.random.Generator) -> Thing:
    return scene.things[int(rng.integers(len(scene.things)))]


def _colour(level: Level, scene: Scene, rng: np.random.Generator) -> _QuestionAndAnswer:
    thing = _pick(scene, rng)
    alike = [other for other in scene.things if other.shape == thing.shape]
    if len(alike) == 1 and rng.random() < 0.5:
        return f"what colour is the {thing.shape}?", thing.colour
    return f"what colour is {place_name(level, thing.place)}?", thing.colour


def _shape(level: Level, scene: Scene, rng: np.random.Generator) -> _QuestionAndAnswer:
    thing = _pick(scene, rng)
    alike = [other for other in scene.things if other.colour == thing.colour]
    if len(alike) == 1 and rng.random() < 0.5:
        return f"what shape is {thing.colour}?", thing.shape
    return f"what shape is {place_name(level, thing.place)}?", thing.shape


def _count(level: Level, scene: Scene, rng: np.random.Generator) -> _QuestionAndAnswer:
    if rng.random() < 0.5:
        return "how many objects?", NUMBERS[len(scene.things)]
    present = rng.random() < 0.6
    colour = (
        _pick(scene, rng).colour if present else level.colours[rng.integers(len(level.colours))]
    )
    count = sum(thing.colour == colour for thing in scene.things)
    return f"how many {colour} objects?", NUMBERS[count]


def _relation(level: Level, scene: Scene, rng: np.random.Generator) -> _QuestionAndAnswer:
    """Where a thing is; of two, whether one is on a side of the other."""
    order = rng.permutation(len(scene.things))
    first = scene.things[order[0]]
    if len(scene.things) == 1 or rng.random() < 0.3:
        return f"where is {refer(scene.things, order[0])}?", place_name(level, first.place)
    second = scene.things[order[1]]
    rows, columns = zip(*(divmod(t.place, level.grid) for t in (first, second)), strict=True)
    holds = {
        "above": rows[0] < rows[1],
        "below": rows[0] > rows[1],
        "left of": columns[0] < columns[1],
        "right of": columns[0] > columns[1],
    }
    wanted = bool(rng.random() < 0.5)
    words = [word for word, held in holds.items() if held == wanted]
    word = words[int(rng.integers(len(words)))]
    names = [refer(scene.things, order[k]) for k in (0, 1)]
    return f"is {names[0]} {word} {names[1]}?", "yes" if wanted else "no"


KINDS: dict[str, Callable[[Level, Scene, np.random.Generator], _QuestionAndAnswer]] = {
    "colour": _colour,
    "shape": _shape,
    "count": _count,
    "relation": _relation,
}


def draw_question(
    level: Level, scene: Scene, kind: str, rng: np.random.Generator
) -> tuple[str, str]:
    """A random question of a kind about a scene, and its answer."""
    return KINDS[kind](level, scene, rng)
