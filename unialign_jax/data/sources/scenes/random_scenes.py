"""Random scenes of a level, on either side of the held-out split."""

from __future__ import annotations

import numpy as np

from unialign_jax.data.sources.scenes.drawing import coverage, mask
from unialign_jax.data.sources.scenes.world import (
    LEVELS,
    Level,
    Scene,
    Thing,
    scene_is_held_out,
)

MOST_TRIES = 1000
# Of every thing, so much stays in sight behind the others, or nobody could say what it is.
LEAST_VISIBLE = 0.6
CLEAR_PIXELS = 24


def draw_scene(
    level: Level, rng: np.random.Generator, *, held_out: bool, count: int | None = None
) -> Scene:
    """A random scene whose things all differ in kind and place, each of them in sight.

    Args:
        level: of the world.
        rng: source of the draws.
        held_out: True: at least one thing is of a held-out combination; False: none is.
        count: number of things; None draws it.
    """
    kinds = level.kinds
    count = count or 1 + int(rng.choice(level.most_things, p=level.counts))
    for _ in range(MOST_TRIES):
        chosen = [kinds[i] for i in rng.permutation(len(kinds))[:count]]
        places = rng.permutation(level.places)[:count]
        things = tuple(
            Thing(size, colour, shape, int(place), draw_shift(level, rng))
            for (size, colour, shape), place in zip(chosen, places, strict=True)
        )
        scene = Scene.of(level, level.backgrounds[rng.integers(len(level.backgrounds))], things)
        if scene_is_held_out(scene) == held_out and is_clear(scene):
            return scene
    raise RuntimeError(f"no scene of {count} things found at level {level.name}")


def draw_shift(level: Level, rng: np.random.Generator) -> tuple[float, float]:
    """A random shift within the level's jitter, in hundredths of a cell."""
    if not level.jitter:
        return 0.0, 0.0
    down, right = np.round(rng.uniform(-level.jitter, level.jitter, 2), 2)
    return float(down), float(right)


def is_clear(scene: Scene) -> bool:
    """Whether enough of every thing is in sight."""
    if len(scene.things) < 2 or not LEVELS[scene.level].jitter:
        return True
    visible = coverage(scene, CLEAR_PIXELS).sum((1, 2))
    whole = np.array([mask(scene.level, thing, CLEAR_PIXELS).sum() for thing in scene.things])
    return bool(np.all(visible >= LEAST_VISIBLE * whole))
