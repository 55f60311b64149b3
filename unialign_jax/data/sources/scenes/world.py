"""What a scene is: levels of the world, things, scenes, and the split that training never shows."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools

from unialign_jax.errors import UsageError

HELD_OUT_SHARE = 0.15
# (size, colour, shape): what one thing looks like.
Kind = tuple[str, str, str]


@dataclasses.dataclass(frozen=True)
class Level:
    """How rich the world is.

    Attributes:
        name: in tables and options.
        pixels: allowed heights (= widths) of the images; the first is the default.
        grid: places per side; place p is in row p // grid and column p % grid.
        shapes, colours, sizes, backgrounds: the words of each attribute.
        counts: probability of 1, 2, ... things in a scene.
        most_references: condition images of a composition, at most.
        jitter: how far a thing may lie from the middle of its place, in cells.
        radii: half the height of a thing of each size, in cells.
    """

    name: str
    pixels: tuple[int, ...]
    grid: int
    shapes: tuple[str, ...]
    colours: tuple[str, ...]
    sizes: tuple[str, ...]
    backgrounds: tuple[str, ...]
    counts: tuple[float, ...]
    most_references: int
    jitter: float
    radii: tuple[float, ...]

    @property
    def places(self) -> int:
        """Number of places."""
        return self.grid**2

    @property
    def most_things(self) -> int:
        """Things in a scene, at most."""
        return len(self.counts)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Every combination of size, colour and shape."""
        return tuple(itertools.product(self.sizes, self.colours, self.shapes))


_SHAPES = ("circle", "square", "triangle", "cross", "diamond", "ring")
_COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan", "orange", "pink")
_BACKGROUNDS = ("black", "grey", "white")

LEVELS = {
    level.name: level
    for level in (
        Level(
            name="demo",
            pixels=(16, 32, 64),
            grid=2,
            shapes=_SHAPES[:4],
            colours=_COLOURS[:6],
            sizes=("large", "small"),
            backgrounds=_BACKGROUNDS,
            counts=(0.3, 0.7),
            most_references=2,
            jitter=0.0,
            radii=(0.49, 0.33),
        ),
        Level(
            name="full",
            pixels=(32, 64, 128),
            grid=3,
            shapes=_SHAPES,
            colours=_COLOURS,
            sizes=("large", "small"),
            backgrounds=_BACKGROUNDS,
            counts=(0.25, 0.4, 0.35),
            most_references=3,
            jitter=0.15,
            radii=(0.56, 0.36),
        ),
    )
}


def level_named(name: str) -> Level:
    """The level of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in LEVELS:
        raise UsageError(f"no level {name!r} of the scenes; there are {', '.join(LEVELS)}")
    return LEVELS[name]


@dataclasses.dataclass(frozen=True)
class Thing:
    """One object of a scene.

    Attributes:
        size, colour, shape: words of the level.
        place: row-major cell of the grid.
        shift: (down, right) from the middle of the cell, in cells.
    """

    size: str
    colour: str
    shape: str
    place: int
    shift: tuple[float, float] = (0.0, 0.0)

    @property
    def kind(self) -> Kind:
        """What it looks like: with its place, the combination that the held-out split is about."""
        return self.size, self.colour, self.shape


@dataclasses.dataclass(frozen=True)
class Scene:
    """A background and things, from back to front: what lies lower in the picture is nearer."""

    level: str
    background: str
    things: tuple[Thing, ...]

    @classmethod
    def of(cls, level: Level, background: str, things: tuple[Thing, ...]) -> Scene:
        """A scene of things in any order."""

        def depth(thing: Thing) -> tuple[float, int]:
            return thing.place // level.grid + thing.shift[0], thing.place

        return cls(level.name, background, tuple(sorted(things, key=depth)))


def same(a: Scene, b: Scene) -> bool:
    """Whether two scenes hold the same things in the same places, whatever their shifts."""

    def content(scene: Scene) -> set[tuple[Kind, int]]:
        return {(thing.kind, thing.place) for thing in scene.things}

    return (
        a.background == b.background and len(a.things) == len(b.things) and content(a) == content(b)
    )


@functools.cache
def held_out_combinations(level: str) -> frozenset[tuple[Kind, int]]:
    """The combinations of kind and place that training never shows: a fixed 15 % of them.

    Kinds are gone through in the order of a hash and places in turn, so that every place loses the
    same share and no kind loses more than its part of the places.
    """
    found = LEVELS[level]
    order = sorted(found.kinds, key=lambda kind: hashlib.sha256(" ".join(kind).encode()).digest())
    count = round(HELD_OUT_SHARE * len(order) * found.places)
    return frozenset(
        (order[k % len(order)], (k + k // len(order)) % found.places) for k in range(count)
    )


def is_held_out(thing: Thing, level: str) -> bool:
    """Whether training never shows a thing of this size, colour and shape in this place."""
    return (thing.kind, thing.place) in held_out_combinations(level)


def scene_is_held_out(scene: Scene) -> bool:
    """Whether any thing of the scene is of a held-out combination."""
    return any(is_held_out(thing, scene.level) for thing in scene.things)
