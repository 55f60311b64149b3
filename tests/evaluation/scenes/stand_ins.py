"""Models that need no training: one that knows the truth, one that returns noise."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from unialign_jax.data.sources.scenes.world import Level
from unialign_jax.data.tasks import Task
from unialign_jax.evaluation.scenes.items import TASKS, make_items


def key(task: Task, text: str, images: Sequence[np.ndarray]) -> tuple[Any, ...]:
    return task, text, *(zlib.crc32(np.ascontiguousarray(image)) for image in images)


class Oracle:
    """Has the face of `Pipeline` and returns the truth of the items of a seed and split."""

    def __init__(self, level: Level, pixels: int, count: int, seed: int = 0, split="held_out"):
        self.known: dict[tuple[Any, ...], Any] = {}
        self.calls: list[tuple[Task, int, int]] = []
        for task in TASKS:
            for item in make_items(level, task, pixels, count, seed=seed, split=split):
                truth = item.truth_image()
                output = item.truth_text() if truth is None else Image.fromarray(truth)
                self.known[key(task, item.text, item.sources)] = output

    def _look_up(self, task: Task, texts: Sequence[str], images: Sequence[Any], options: Any):
        assert len(options["seed"]) == len(texts)
        self.calls.append((task, len(texts), options["batch"]))
        return [self.known[key(task, *pair)] for pair in zip(texts, images, strict=True)]

    def generate(self, prompts: Sequence[str], **options: Any) -> list[Any]:
        return self._look_up(Task.GENERATE, prompts, [()] * len(prompts), options)

    def caption(self, images: Sequence[Any], **options: Any) -> list[Any]:
        return self._look_up(Task.CAPTION, [""] * len(images), [(i,) for i in images], options)

    def answer(self, images: Sequence[Any], questions: Sequence[str], **options: Any) -> list[Any]:
        return self._look_up(Task.ANSWER, questions, [(i,) for i in images], options)

    def edit(self, images: Sequence[Any], texts: Sequence[str], **options: Any) -> list[Any]:
        return self._look_up(Task.EDIT, texts, [(i,) for i in images], options)

    def perceive(self, images: Sequence[Any], texts: Sequence[str], **options: Any) -> list[Any]:
        return self._look_up(Task.PERCEIVE, texts, [(i,) for i in images], options)

    def compose(self, images: Sequence[Any], texts: Sequence[str], **options: Any) -> list[Any]:
        return self._look_up(Task.COMPOSE, texts, images, options)


def noise(seed: int, pixels: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (pixels, pixels, 3), dtype=np.uint8)


class Noise(Oracle):
    """Returns noise for images and nonsense for texts."""

    def __init__(self, pixels: int):
        self.pixels = pixels

    def _look_up(self, task: Task, texts: Sequence[str], images: Sequence[Any], options: Any):
        if task in (Task.CAPTION, Task.ANSWER):
            return ["a large </s> on on, background"] * len(texts)
        return [noise(seed, self.pixels) for seed in options["seed"]]
