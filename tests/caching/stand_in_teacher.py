"""A teacher without weights, whose features follow from pixels and letters by plain arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


class StandInTeacher:
    """Four features: mean red, green, blue and the top left red, in 0..1; or counts of letters.

    Args:
        fingerprint: of this teacher.
        pixels: side of its images.
        scale: of all features.
        repeats: how often the four features follow each other.
        before: called before every batch of images with the number of batches so far.
    """

    name = "stand_in"

    def __init__(
        self,
        fingerprint: str = "first",
        pixels: int = 16,
        scale: float = 1.0,
        repeats: int = 1,
        before: Callable[[int], None] = lambda batches: None,
    ):
        self.fingerprint, self.pixels = fingerprint, pixels
        self._scale, self._repeats, self._before = scale, repeats, before
        self.batches = 0

    def image_features(self, images: np.ndarray, *, grid: bool = False) -> np.ndarray:
        assert images.dtype == np.uint8 and images.shape[1:] == (self.pixels, self.pixels, 3)
        self._before(self.batches)
        self.batches += 1
        if grid:
            half = self.pixels // 2
            parts = [images[:, y : y + half, x : x + half] for y in (0, half) for x in (0, half)]
            values = np.stack([self._looks(part) for part in parts], axis=1)
            return values.reshape(len(images), 2, 2, -1)
        return self._looks(images)

    def text_features(self, texts: Sequence[str]) -> np.ndarray:
        rows = [[len(text), text.count("a"), text.count("e"), text.count(" ")] for text in texts]
        return self._out(np.asarray(rows, np.float32) / 64)

    def _looks(self, images: np.ndarray) -> np.ndarray:
        values = images.astype(np.float32) / 255
        corner = values[:, :1, :1, 0].reshape(len(images), 1)
        return self._out(np.concatenate([values.mean((1, 2)), corner], axis=1))

    def _out(self, values: np.ndarray) -> np.ndarray:
        return np.tile(values, self._repeats) * np.float32(self._scale)
