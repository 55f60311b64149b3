"""How much nearer to its picture a drawing comes with one thing more, for everything it could be.

With canvas K, what lies behind a thing B, the share T of light that what is in front lets through,
the thing's mask m and colour c, drawing it changes the canvas by T m (c - B). Against the
difference D = I - K the squared error falls by 2 <T m (c - B), D> - |T m (c - B)|^2. Both terms are
products of the masks with nine pictures, whatever the number of colours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from unialign_jax.data.sources.scenes import drawing
from unialign_jax.data.sources.scenes.world import LEVELS, Scene
from unialign_jax.evaluation.scenes.templates import (
    Templates,
    depth,
    mask,
    reading_size,
    templates,
)

if TYPE_CHECKING:
    from jaxtyping import Float

# So much of a thing must be in sight; the world keeps 0.6 of each, the rest is for rounding.
LEAST_VISIBLE = 0.4


@dataclasses.dataclass(frozen=True)
class Gains:
    """What everything that could stand in one place would gain, for a batch of pictures.

    Attributes:
      options: the place's masks.
      gain_BMC: by how much the squared error falls, per mask and colour, in units of (full
        channel)^2 summed over pixels; minus infinity where too little would be in sight.
      energy_BMC: the squared change that the thing makes: the gain, were it really there.
    """

    options: Templates
    gain_BMC: Float[np.ndarray, "B M C"]
    energy_BMC: Float[np.ndarray, "B M C"]


class Beside:
    """Pictures and what is drawn of each so far; `at` says what one thing more would gain.

    Args:
      pictures: [B, P, P, 3] at the level's reading size, 0 to 1.
      scenes: of one level, their things from back to front; one per picture.
      blur: of all things, as in `templates.mask`.
    """

    def __init__(
        self, pictures: Float[np.ndarray, "B P P 3"], scenes: Sequence[Scene], blur: float
    ):
        self._level, self._blur = scenes[0].level, blur
        self._depths = [[depth(s.level, thing) for thing in s.things] for s in scenes]
        slots = 1 + max(map(len, self._depths))
        first = np.zeros((*pictures.shape[1:3], len(scenes), slots, 4), np.float32)
        second = np.zeros((*pictures.shape[1:3], len(scenes), slots, 5), np.float32)
        for index, (picture, scene) in enumerate(zip(pictures, scenes, strict=True)):
            stages, through = stages_of(scene, blur), _light(scene, blur)
            difference = picture - stages[-1]
            for slot, (behind, light) in enumerate(zip(stages, through, strict=True)):
                seen = light * difference
                first[:, :, index, slot, :3] = seen
                first[:, :, index, slot, 3] = (seen * behind).sum(-1)
                weight = light**2
                second[:, :, index, slot, :1] = weight
                second[:, :, index, slot, 1:4] = weight * behind
                second[:, :, index, slot, 4] = (weight * behind**2).sum(-1)
        self._first, self._second = first, second

    def at(self, place: int, rows: Sequence[int] | np.ndarray, *, fine: bool = False) -> Gains:
        """The gains at one place.

        Args:
          place: of the added thing.
          rows: the pictures that are wanted.
          fine: all shifts in place of a few.
        """
        options = templates(self._level, self._blur, fine)[place]
        # Slot s lies in front of the s things that are farther away.
        slot_BM = np.stack([np.searchsorted(self._depths[i], options.depth_M) for i in rows])
        linear = _per_slot(options.masks_MW, self._first, options, slot_BM, rows)
        square = _per_slot(options.squares_MW, self._second, options, slot_BM, rows)
        colours_C3 = colour_table(self._level)
        energy = (
            square[..., :1] * (colours_C3**2).sum(1)
            - 2 * square[..., 1:4] @ colours_C3.T
            + square[..., 4:]
        )
        gain = 2 * (linear[..., :3] @ colours_C3.T - linear[..., 3:]) - energy
        hidden = square[..., 0] < LEAST_VISIBLE * options.energy_M
        return Gains(options, np.where(hidden[..., None], -np.inf, gain), energy)


def colour_table(level: str) -> Float[np.ndarray, "C 3"]:
    """The colours of a level in its order, 0 to 1."""
    return np.asarray([drawing.COLOURS[name] for name in LEVELS[level].colours], np.float32) / 255


def stages_of(scene: Scene, blur: float) -> list[Float[np.ndarray, "P P 3"]]:
    """The drawing after 0, 1, ... things at the level's reading size, 0 to 1, without rounding."""
    pixels = reading_size(scene.level)
    ground = np.asarray(drawing.BACKGROUNDS[scene.background], np.float32) / 255
    stages = [np.broadcast_to(ground, (pixels, pixels, 3))]
    for thing in scene.things:
        colour = np.asarray(drawing.COLOURS[thing.colour], np.float32) / 255
        covered = mask(scene.level, thing, blur)[..., None]
        stages.append(stages[-1] + covered * (colour - stages[-1]))
    return stages


def _light(scene: Scene, blur: float) -> list[np.ndarray]:
    """Per slot, the share [P, P, 1] of light that the things in front of it let through."""
    pixels = reading_size(scene.level)
    through = [np.ones((pixels, pixels, 1), np.float32)]
    for thing in reversed(scene.things):
        through.insert(0, through[0] * (1 - mask(scene.level, thing, blur)[..., None]))
    return through


def _per_slot(
    masks_MW: np.ndarray,
    pictures: np.ndarray,
    options: Templates,
    slot_BM: np.ndarray,
    wanted: Sequence[int] | np.ndarray,
) -> np.ndarray:
    """Products of every mask with the pictures of its own slot: [B, M, columns]."""
    rows, columns = options.window
    cut = pictures[rows, columns][:, :, wanted]
    batch, slots, width = cut.shape[2:]
    flat = np.ascontiguousarray(cut).reshape(-1, batch * slots * width)
    products = (masks_MW @ flat).reshape(-1, batch, slots, width)
    images, masks = np.ogrid[:batch, : len(masks_MW)]
    return products[masks, images, slot_BM]
