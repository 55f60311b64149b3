"""Edits of scenes: one thing or the background changes, all else stays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from unialign_jax.data.sources.scenes.language import place_name, point_at
from unialign_jax.data.sources.scenes.world import LEVELS, Level, Scene, Thing


@dataclasses.dataclass(frozen=True)
class Edit:
    """What an instruction asks for.

    Attributes:
        kind: a key of `KINDS`.
        instruction: the words.
        truth: the scene afterwards.
        subject: the changed, added or removed thing; None where the background changes.
    """

    kind: str
    instruction: str
    truth: Scene
    subject: Thing | None


_Draw = Callable[[Level, Scene, int, np.random.Generator], Edit | None]


def _choice(rng: np.random.Generator, words: tuple[str, ...] | list[str]) -> str:
    return words[int(rng.integers(len(words)))]


def _another(rng: np.random.Generator, words: tuple[str, ...], old: str) -> str:
    return _choice(rng, [word for word in words if word != old])


def _free_place(level: Level, scene: Scene, rng: np.random.Generator) -> int:
    taken = {thing.place for thing in scene.things}
    return int(rng.choice([place for place in range(level.places) if place not in taken]))


def _changed(
    kind: str, scene: Scene, index: int, instruction: str, thing: Thing | None
) -> Edit | None:
    """The edit that puts `thing` in place of thing `index` (or only takes that away)."""
    rest = (*scene.things[:index], *scene.things[index + 1 :])
    if thing is not None and thing.kind in {other.kind for other in rest}:
        return None
    things = rest if thing is None else (*rest, thing)
    truth = Scene.of(LEVELS[scene.level], scene.background, things)
    return Edit(kind, instruction, truth, thing or scene.things[index])


def _attribute(kind: str, name: str, words: str, forms: tuple[str, ...]) -> _Draw:
    """The edit that gives one attribute of a thing another word; `words` is the level's field."""

    def draw(level: Level, scene: Scene, index: int, rng: np.random.Generator) -> Edit | None:
        thing = scene.things[index]
        word = _another(rng, getattr(level, words), getattr(thing, name))
        text = _choice(rng, forms).format(point_at(level, thing), word)
        return _changed(kind, scene, index, text, dataclasses.replace(thing, **{name: word}))

    return draw


def _move(level: Level, scene: Scene, index: int, rng: np.random.Generator) -> Edit | None:
    place = _free_place(level, scene, rng)
    form = _choice(rng, ("move {} to {}", "put {} to {}"))
    text = form.format(point_at(level, scene.things[index]), place_name(level, place))
    moved = dataclasses.replace(scene.things[index], place=place, shift=(0.0, 0.0))
    return _changed("move", scene, index, text, moved)


def _add(level: Level, scene: Scene, index: int, rng: np.random.Generator) -> Edit | None:
    if len(scene.things) >= level.most_things:
        return None
    kind = level.kinds[int(rng.integers(len(level.kinds)))]
    thing = Thing(*kind, _free_place(level, scene, rng))
    if kind in {other.kind for other in scene.things}:
        return None
    form = _choice(rng, ("add a {} {}", "draw a {} {}"))
    text = form.format(" ".join(kind), place_name(level, thing.place))
    truth = Scene.of(level, scene.background, (*scene.things, thing))
    return Edit("add", text, truth, thing)


def _remove(level: Level, scene: Scene, index: int, rng: np.random.Generator) -> Edit | None:
    if len(scene.things) < 2:
        return None
    text = _choice(rng, ("remove {}", "erase {}")).format(point_at(level, scene.things[index]))
    return _changed("remove", scene, index, text, None)


def _background(level: Level, scene: Scene, index: int, rng: np.random.Generator) -> Edit | None:
    ground = _another(rng, level.backgrounds, scene.background)
    form = _choice(rng, ("make the background {}", "change the background to {}"))
    truth = dataclasses.replace(scene, background=ground)
    return Edit("background", form.format(ground), truth, None)


KINDS: dict[str, _Draw] = {
    "recolour": _attribute("recolour", "colour", "colours", ("make {} {}", "paint {} {}")),
    "move": _move,
    "add": _add,
    "remove": _remove,
    "replace": _attribute(
        "replace", "shape", "shapes", ("turn {} into a {}", "replace {} with a {}")
    ),
    "resize": _attribute("resize", "size", "sizes", ("make {} {}", "resize {} to {}")),
    "background": _background,
}


def draw_edit(level: Level, scene: Scene, kind: str, rng: np.random.Generator) -> Edit | None:
    """A random edit of a kind; None where the scene does not admit the one that was drawn."""
    return KINDS[kind](level, scene, int(rng.integers(len(scene.things))), rng)
