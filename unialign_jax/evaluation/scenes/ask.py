"""Puts items to a model and brings whatever comes back into one form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from unialign_jax.data.tasks import Task
from unialign_jax.evaluation.scenes.items import IMAGE_TASKS, Item

if TYPE_CHECKING:
    from jaxtyping import UInt8

    from unialign_jax.sampling.pipeline import Pipeline

    # A picture [P, P, 3] or a text.
    Output = UInt8[np.ndarray, "P P 3"] | str

SEEDS = 1 << 32


def ask(
    pipe: Pipeline,
    items: Sequence[Item],
    *,
    seed: int,
    batch: int,
    advance: Callable[[int], None] = lambda count: None,
) -> list[Output]:
    """The model's outputs for items of one task, in their order.

    An output depends on its item and the seed, not on the batch.

    Args:
      pipe: the model.
      items: of one task.
      seed: item i draws from a number made of this and i.
      batch: items computed at once.
      advance: told how many items were finished.
    """
    # Items with as many sources are computed together: each number of them is another program.
    counts = [len(item.source_scenes) for item in items]
    outputs: dict[int, Output] = {}
    for rows in _chunks(sorted(range(len(items)), key=counts.__getitem__), counts, batch):
        seeds = [(seed * 1_000_003 + i) % SEEDS for i in rows]
        made = _call(pipe, [items[i] for i in rows], seed=seeds, batch=batch)
        for i, output in zip(rows, made, strict=True):
            is_picture = items[i].task in IMAGE_TASKS
            outputs[i] = as_picture(output, items[i].pixels) if is_picture else str(output)
        advance(len(rows))
    return [outputs[i] for i in range(len(items))]


def _chunks(order: Sequence[int], groups: Sequence[int], size: int) -> list[list[int]]:
    chunks: list[list[int]] = []
    for i in order:
        if not chunks or len(chunks[-1]) == size or groups[chunks[-1][0]] != groups[i]:
            chunks.append([])
        chunks[-1].append(i)
    return chunks


def _call(pipe: Pipeline, items: Sequence[Item], **options: Any) -> list[Any]:
    task, texts = items[0].task, [item.text for item in items]
    first = [item.sources[0] for item in items if item.source_scenes]
    if task is Task.GENERATE:
        return pipe.generate(texts, **options)
    if task is Task.CAPTION:
        return pipe.caption(first, **options)
    if task is Task.ANSWER:
        return pipe.answer(first, texts, **options)
    if task is Task.EDIT:
        return pipe.edit(first, texts, **options)
    if task is Task.PERCEIVE:
        return pipe.perceive(first, texts, **options)
    return pipe.compose([list(item.sources) for item in items], texts, **options)


def as_picture(output: Any, pixels: int) -> UInt8[np.ndarray, "P P 3"]:
    """A PIL image or array as an RGB picture of a height, whatever its mode and size."""
    image = output if isinstance(output, Image.Image) else Image.fromarray(np.asarray(output))
    image = image.convert("RGB")
    if image.size != (pixels, pixels):
        image = image.resize((pixels, pixels), Image.Resampling.BOX)
    return np.asarray(image)
