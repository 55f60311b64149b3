"""Reads scenes back from pixels, by synthesis: the things whose drawing is nearest to the picture.

The background is the one nearest to the picture's median, since things never cover half of it.
Things are then put in one by one, each time the one that brings the drawing nearest to the picture;
each is taken out and chosen again while the others stay, until nothing changes. Where things lie
apart this is the nearest template of every place; where they overlap, the choice counts what is
hidden, and neighbours are also tried again together.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from unialign_jax.data.sources.scenes import drawing
from unialign_jax.data.sources.scenes.world import LEVELS, Scene, Thing
from unialign_jax.evaluation.scenes.synthesis import Beside, Gains, stages_of
from unialign_jax.evaluation.scenes.templates import reading_size

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8

# A thing is read where it explains so much of the difference that it would make.
LEAST_EXPLAINED = 0.25
# Standard deviations of the Gaussians that blurred pictures are read with, in pixels of the reading
# size. A blur is assumed where it lowers the error by more than the margin.
BLURS = (0.5, 0.75, 1.0)
BLUR_MARGIN = 1.05
# From this error on, neighbours are tried again together: one may have been taken for part of the
# other.
DOUBTFUL_ERROR = 0.025
# Gains count as equal from this share of the best on.
SAME_GAIN = 0.999
# Up to this error a picture is sharp where things may lie between the shifts of the templates.
SHIFT_ERROR = 0.05
# Rounds of choosing every thing again.
MOST_ROUNDS = 4
# Pictures worked on at once: enough for large matrix products that still fit in the cache.
CHUNK = 32


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a picture shows.

    Attributes:
      scene: the best guess, with shifts; it may hold one thing more than scenes of the level do.
      confidence: per place, 0 to 1: by how much the picture is nearer to what was read there than
        to the next best, as a share of the difference that the thing makes.
      blur: one of `BLURS`, or 0: what it was read with.
      error: root mean square between the picture and the drawing of the guess, 0 to 1.
    """

    scene: Scene
    confidence: tuple[float, ...]
    blur: float
    error: float

    def at(self, place: int) -> Thing | None:
        """What was read at a place."""
        return next((thing for thing in self.scene.things if thing.place == place), None)


def read_scene(image: UInt8[np.ndarray, "P P 3"], level: str) -> Reading:
    """Reads one picture; see `read_scenes`."""
    return read_scenes([image], level)[0]


def read_scenes(images: Iterable[UInt8[np.ndarray, "P P 3"]], level: str) -> list[Reading]:
    """Reads pictures.

    Args:
      images: their height and width are a multiple of the level's smallest height.
      level: the name of the level whose words and places are read.

    Raises:
      ValueError: another shape.
    """
    pictures = [averaged(image, reading_size(level)) for image in images]
    found = []
    for start in range(0, len(pictures), CHUNK):
        found += _read(np.stack(pictures[start : start + CHUNK]), level)
    return found


def averaged(image: UInt8[np.ndarray, "P P 3"], size: int) -> Float[np.ndarray, "S S 3"]:
    """A picture from 0 to 1, brought down to a height by means over blocks of pixels.

    Raises:
      ValueError: a picture that does not divide into blocks.
    """
    image = np.asarray(image)
    block = image.shape[0] // size
    if not block or image.shape != (block * size, block * size, 3):
        raise ValueError(f"a picture {image.shape}: a multiple of {size} high and wide, 3 channels")
    blocks = image.reshape(size, block, size, block, 3)
    return blocks.mean((1, 3), dtype=np.float32) / 255


def nearest_background(picture: Float[np.ndarray, "P P 3"], level: str) -> str:
    """The background nearest to the picture's median colour."""
    middle = np.median(picture, axis=(0, 1))

    def distance(name: str) -> float:
        return float(np.square(middle - np.asarray(drawing.BACKGROUNDS[name]) / 255).sum())

    return min(LEVELS[level].backgrounds, key=distance)


def _read(pictures: np.ndarray, level: str) -> list[Reading]:
    """Reads a few pictures, each at the blur at which the reading is nearest to it."""
    best = _read_at(pictures, level, 0.0)
    expected = SHIFT_ERROR if LEVELS[level].jitter else 0.0
    unclear = [i for i, reading in enumerate(best) if reading.error > expected]
    for blur in BLURS if unclear else ():
        for i, reading in zip(unclear, _read_at(pictures[unclear], level, blur), strict=True):
            margin = 1.0 if best[i].blur else BLUR_MARGIN
            if reading.error * margin < best[i].error:
                best[i] = reading
    return best


def _read_at(pictures: np.ndarray, level: str, blur: float) -> list[Reading]:
    """Reads a few pictures as blurred ones."""
    scenes = [Scene(level, nearest_background(picture, level), ()) for picture in pictures]
    active: Sequence[int] = range(len(scenes))
    for _ in range(LEVELS[level].most_things + 1):
        active = _add(pictures, scenes, active, blur)
    if LEVELS[level].jitter:
        _choose_again(pictures, scenes, blur)
        _choose_pairs_again(pictures, scenes, blur)
    sure = _confidence(pictures, scenes, blur)
    return [
        Reading(scene, row, blur, _error(picture, scene, blur))
        for picture, scene, row in zip(pictures, scenes, sure, strict=True)
    ]


def _error(picture: np.ndarray, scene: Scene, blur: float) -> float:
    return float(np.sqrt(np.mean(np.square(picture - stages_of(scene, blur)[-1]))))


def _add(
    pictures: np.ndarray,
    scenes: list[Scene],
    active: Sequence[int],
    blur: float,
    near: Sequence[int] = (),
    *,
    alone: bool = False,
) -> list[int]:
    """Puts the best thing into each active scene; returns those where one explained enough.

    Args:
      pictures: one per scene.
      scenes: what is drawn so far; changed in place.
      active: which of them get a thing.
      blur: of all things.
      near: a place of each active scene that is searched with all shifts; none: no place is.
      alone: no other place is searched, and of shifts that are equally good the nearest is taken.
    """
    if not active:
        return []
    level = LEVELS[scenes[0].level]
    chosen = [scenes[i] for i in active]
    beside = Beside(pictures[list(active)], chosen, blur)
    open_BP = np.array([[_at(s, p) is None for p in range(level.places)] for s in chosen])
    best: list[Thing | None] = [None] * len(chosen)
    most = np.zeros(len(chosen))
    for place in range(level.places):
        searched = [] if alone else [(open_BP[:, place], False)]
        if near:
            searched.append((np.equal(near, place), True))
        for rows_B, fine in searched:
            rows = np.flatnonzero(rows_B)
            if not len(rows):
                continue
            found = beside.at(place, rows, fine=fine)
            enough = found.gain_BMC >= LEAST_EXPLAINED * found.energy_BMC
            gain = np.where(enough, found.gain_BMC, -np.inf).reshape(len(rows), -1)
            winners = zip(rows, gain.argmax(1), gain.max(1), strict=True)
            for k, (row, winner, value) in enumerate(winners):
                if value > most[row]:
                    if alone:
                        winner = _nearest(gain[k], found)
                    mask, colour = divmod(int(winner), len(level.colours))
                    thing = found.options.things[mask]
                    best[row] = dataclasses.replace(thing, colour=level.colours[colour])
                    most[row] = value
    grown = []
    for i, thing in zip(active, best, strict=True):
        if thing is not None:
            scenes[i] = Scene.of(level, scenes[i].background, (*scenes[i].things, thing))
            grown.append(i)
    return grown


def _nearest(gain: np.ndarray, found: Gains) -> int:
    """Of the best choices, the one in front: at the picture's edge, shifts can look the same."""
    best = np.flatnonzero(gain >= SAME_GAIN * gain.max())
    return int(best[found.options.depth_M[best // found.gain_BMC.shape[2]].argmax()])


def _choose_again(pictures: np.ndarray, scenes: list[Scene], blur: float) -> None:
    """Chooses every thing again given the others, until none changes."""
    active = [i for i, scene in enumerate(scenes) if scene.things]
    for _ in range(MOST_ROUNDS):
        before = {i: scenes[i] for i in active}
        for number in range(max((len(scene.things) for scene in before.values()), default=0)):
            turn = [i for i in active if number < len(before[i].things)]
            for i in turn:
                scenes[i] = _without(scenes[i], before[i].things[number].place)
            _add(pictures, scenes, turn, blur, [before[i].things[number].place for i in turn])
        active = [i for i in active if scenes[i] != before[i]]


def _choose_pairs_again(pictures: np.ndarray, scenes: list[Scene], blur: float) -> None:
    """Takes neighbours out, chooses the one, the other, the first again; keeps what is nearer."""
    errors = [_error(*pair, blur) for pair in zip(pictures, scenes, strict=True)]
    pairs = [
        _neighbours(scene) if error > DOUBTFUL_ERROR else []
        for scene, error in zip(scenes, errors, strict=True)
    ]
    for number in range(max(map(len, pairs), default=0)):
        rows = [i for i, found in enumerate(pairs) if number < len(found)]
        first, second = ([pairs[i][number][k] for i in rows] for k in (0, 1))
        trial = [_without(scenes[i], *pair) for i, *pair in zip(rows, first, second, strict=True)]
        for places in (first, second, first):
            trial = [_without(scene, place) for scene, place in zip(trial, places, strict=True)]
            _add(pictures[rows], trial, range(len(rows)), blur, places, alone=True)
        better = []
        for i, scene in zip(rows, trial, strict=True):
            error = _error(pictures[i], scene, blur)
            if error < errors[i]:
                scenes[i], errors[i] = scene, error
                better.append(i)
        again = [scenes[i] for i in better]
        _choose_again(pictures[better], again, blur)
        for i, scene in zip(better, again, strict=True):
            scenes[i], errors[i] = scene, _error(pictures[i], scene, blur)


def _neighbours(scene: Scene) -> list[tuple[int, int]]:
    """Ordered pairs of occupied places that touch, also at a corner."""
    grid = LEVELS[scene.level].grid
    cells = [divmod(thing.place, grid) for thing in scene.things]
    return [
        (a.place, b.place)
        for (a, cell), (b, other) in itertools.permutations(
            zip(scene.things, cells, strict=True), 2
        )
        if max(abs(cell[0] - other[0]), abs(cell[1] - other[1])) == 1
    ]


def _confidence(pictures: np.ndarray, scenes: list[Scene], blur: float) -> list[tuple[float, ...]]:
    """See `Reading`."""
    level = LEVELS[scenes[0].level]
    found = np.zeros((len(scenes), level.places))
    beside = Beside(pictures, scenes, blur)
    for place in range(level.places):
        empty = beside.at(place, range(len(scenes)))
        explained = empty.gain_BMC / np.maximum(empty.energy_BMC, 1e-6)
        found[:, place] = 1 - explained.max((1, 2))
        here = {i: thing for i, scene in enumerate(scenes) if (thing := _at(scene, place))}
        if not here:
            continue
        rest = [_without(scenes[i], place) for i in here]
        gains = Beside(pictures[list(here)], rest, blur)
        gains = gains.at(place, range(len(rest)), fine=True)
        for k, (i, thing) in enumerate(here.items()):
            shapes = [(t.size, t.shape) == (thing.size, thing.shape) for t in gains.options.things]
            own = np.outer(shapes, [name == thing.colour for name in level.colours])
            where = np.where(own, gains.gain_BMC[k], -np.inf).argmax()
            rival = max(0.0, gains.gain_BMC[k][~own].max())
            ahead = gains.gain_BMC[k].flat[where] - rival
            found[i, place] = ahead / max(gains.energy_BMC[k].flat[where], 1e-6)
    return [tuple(map(float, row)) for row in np.clip(found, 0, 1)]


def _at(scene: Scene, place: int) -> Thing | None:
    return next((thing for thing in scene.things if thing.place == place), None)


def _without(scene: Scene, *places: int) -> Scene:
    rest = tuple(thing for thing in scene.things if thing.place not in places)
    return dataclasses.replace(scene, things=rest)
