"""Scenes for the tests of the scorer, and what spoils their pictures."""

from __future__ import annotations

import numpy as np

from unialign_jax.data.sources.scenes.random_scenes import draw_scene
from unialign_jax.data.sources.scenes.world import LEVELS, Scene

SEED = 11


def some_scenes(level: str, count: int, seed: int = SEED) -> list[Scene]:
    """Random scenes, every second of them with a held-out combination."""
    rng = np.random.default_rng(seed)
    return [draw_scene(LEVELS[level], rng, held_out=bool(k % 2)) for k in range(count)]


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    """A picture [P, P, 3] under a Gaussian of a standard deviation in pixels."""
    if not sigma:
        return image
    offsets = np.arange(-16, 17)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    padded = np.pad(image.astype(np.float64), ((16, 16), (16, 16), (0, 0)), mode="edge")
    size = len(image)
    rows = sum(w * padded[k : k + size] for k, w in enumerate(weights)) / weights.sum()
    both = sum(w * rows[:, k : k + size] for k, w in enumerate(weights)) / weights.sum()
    return np.round(both).astype(np.uint8)


def noisy(image: np.ndarray, sigma: float, seed: int) -> np.ndarray:
    """A picture with normal noise of a standard deviation, of 255."""
    noise = np.random.default_rng(seed).normal(0, sigma, image.shape)
    return np.clip(np.round(image + noise), 0, 255).astype(np.uint8)
