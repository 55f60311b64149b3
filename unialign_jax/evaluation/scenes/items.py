"""What a model is examined on: examples of the world as inputs and truths of the six tasks."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import numpy as np

from unialign_jax.data.sources.scenes import drawing
from unialign_jax.data.sources.scenes.examples import Example, make_example, target_image
from unialign_jax.data.sources.scenes.world import Level, Scene
from unialign_jax.data.tasks import Task

if TYPE_CHECKING:
    from jaxtyping import UInt8

TASKS = tuple(Task)
IMAGE_TASKS = frozenset({Task.GENERATE, Task.EDIT, Task.PERCEIVE, Task.COMPOSE})
SPLITS = ("held_out", "seen")

# Examples of training combinations are taken from here on, far behind those that training reads.
BEYOND_TRAINING = 1 << 40


@dataclasses.dataclass(frozen=True)
class Item:
    """One question to a model, with its truth.

    Attributes:
      task: one of the six.
      example: what it was made of.
      text: the prompt, instruction or question; "" for a caption.
      pixels: height and width of all its images.
    """

    task: Task
    example: Example
    text: str
    pixels: int

    @property
    def kind(self) -> str:
        """The kind of edit, map or question, or the number of references; else the task."""
        return "caption" if self.task is Task.CAPTION else self.example.kind

    @property
    def source_scenes(self) -> tuple[Scene, ...]:
        """What the images that go in show."""
        shown = self.task in (Task.CAPTION, Task.ANSWER)
        return (self.example.truth,) if shown else self.example.sources

    @functools.cached_property
    def sources(self) -> tuple[UInt8[np.ndarray, "P P 3"], ...]:
        """The images that go in."""
        return tuple(drawing.render(scene, self.pixels) for scene in self.source_scenes)

    def truth_image(self) -> UInt8[np.ndarray, "P P 3"] | None:
        """The image that is wanted; None where a text is."""
        return target_image(self.example, self.pixels) if self.task in IMAGE_TASKS else None

    def truth_text(self) -> str:
        """The text that is wanted: a wording of the caption, or the answer; "" for an image."""
        if self.task is Task.CAPTION:
            return self.example.captions[0]
        return self.example.answer if self.task is Task.ANSWER else ""


def make_item(
    level: Level, task: Task, pixels: int, index: int, *, seed: int, held_out: bool
) -> Item:
    """Item `index` of a task; equal arguments give equal items.

    The wording of a prompt goes round with the index.
    """
    trained = Task.GENERATE if task is Task.CAPTION else task
    example = make_example(level, trained, index, seed=seed, held_out=held_out)
    if task is Task.GENERATE:
        text = example.captions[index % len(example.captions)]
    else:
        text = example.question if task is Task.ANSWER else example.instruction
    return Item(task, example, text, pixels)


def make_items(
    level: Level, task: Task, pixels: int, count: int, *, seed: int, split: str = "held_out"
) -> list[Item]:
    """The items of a task.

    Args:
      level: of the world.
      task: one of the six.
      pixels: height of the images.
      count: how many.
      seed: of the set.
      split: "held_out": scenes with a combination that training never shows; "seen": scenes drawn
        as those of training are, but not drawn for training.
    """
    held_out = split == "held_out"
    first = 0 if held_out else BEYOND_TRAINING
    return [
        make_item(level, task, pixels, first + index, seed=seed, held_out=held_out)
        for index in range(count)
    ]
