"""Words about scenes: captions and how they are read back, and names of things and places."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence

from unialign_jax.data.sources.scenes.world import LEVELS, Level, Scene, Thing

_ROWS = {2: ("top", "bottom"), 3: ("top", "", "bottom")}
_COLUMNS = {2: ("left", "right"), 3: ("left", "", "right")}


def place_name(level: Level, place: int) -> str:
    """The words for a place, such as "top left"; the middle of a 3 x 3 grid is "middle"."""
    row, column = divmod(place, level.grid)
    words = (_ROWS[level.grid][row], _COLUMNS[level.grid][column])
    return " ".join(word for word in words if word) or "middle"


@dataclasses.dataclass(frozen=True)
class Wording:
    """One way to put a caption; what is said of a thing stands in the same order in all of them.

    Attributes:
        article: before every thing.
        sizes: the words for the level's sizes.
        joiner: between things.
        ending: after the last thing; "{}" is the background.
    """

    article: str
    sizes: tuple[str, ...]
    joiner: str
    ending: str


WORDINGS = (
    Wording("a", ("large", "small"), " and ", " on {}"),
    Wording("a", ("big", "little"), ", ", ", {} background"),
    Wording("the", ("large", "small"), " with ", " against {}"),
)


def captions(scene: Scene) -> tuple[str, ...]:
    """Every wording of a scene's description; things in the order of reading, by place."""
    level = LEVELS[scene.level]
    things = sorted(scene.things, key=lambda thing: thing.place)
    return tuple(
        wording.joiner.join(
            f"{wording.article} {wording.sizes[level.sizes.index(thing.size)]} {thing.colour} "
            f"{thing.shape} {place_name(level, thing.place)}"
            for thing in things
        )
        + wording.ending.format(scene.background)
        for wording in WORDINGS
    )


@functools.cache
def _patterns(level: str) -> tuple[tuple[re.Pattern[str], re.Pattern[str]], ...]:
    """Per wording, the patterns of a whole caption and of one thing in it."""
    found = LEVELS[level]
    places = sorted((place_name(found, p) for p in range(found.places)), key=len, reverse=True)

    def choice(group: str, words: Sequence[str]) -> str:
        return f"(?P<{group}>{'|'.join(words)})"

    patterns = []
    for wording in WORDINGS:
        thing = f"{wording.article} " + " ".join(
            choice(group, words)
            for group, words in (
                ("size", wording.sizes),
                ("colour", found.colours),
                ("shape", found.shapes),
                ("place", places),
            )
        )
        unnamed = re.sub(r"\?P<\w+>", "?:", thing)
        ending = wording.ending.format(choice("ground", found.backgrounds))
        whole = f"(?P<things>{unnamed}(?:{wording.joiner}{unnamed})*){ending}"
        patterns.append((re.compile(whole), re.compile(thing)))
    return tuple(patterns)


def parse_caption(text: str, level: Level) -> Scene | None:
    """The scene that a caption describes, without shifts; None if it is no caption.

    Any wording of `captions` is read, in any order of the things and whatever the case and the
    spaces. A place named twice makes it no caption.
    """
    text = re.sub(r"\s*,\s*", ", ", " ".join(text.lower().split()))
    for wording, (whole, one) in zip(WORDINGS, _patterns(level.name), strict=True):
        match = whole.fullmatch(text)
        if match is None:
            continue
        names = {place_name(level, place): place for place in range(level.places)}
        things = tuple(
            Thing(
                level.sizes[wording.sizes.index(part["size"])],
                part["colour"],
                part["shape"],
                names[part["place"]],
            )
            for part in one.finditer(match["things"])
        )
        if len({thing.place for thing in things}) < len(things):
            return None
        return Scene.of(level, match["ground"], things)
    return None


def refer(things: Sequence[Thing], index: int) -> str:
    """Colour and shape ("the red circle"), with the size where they do not single it out.

    Args:
        things: among which it must be recognised.
        index: of the thing.
    """
    size, colour, shape = things[index].kind
    alike = [thing for thing in things if (thing.colour, thing.shape) == (colour, shape)]
    return f"the {colour} {shape}" if len(alike) == 1 else f"the {size} {colour} {shape}"


def point_at(level: Level, thing: Thing) -> str:
    """Colour, shape and place ("the red circle top left"), in the order that captions have."""
    return f"the {thing.colour} {thing.shape} {place_name(level, thing.place)}"
