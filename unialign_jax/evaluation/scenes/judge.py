"""What an output is worth: the score of each item of each task."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from unialign_jax.data.sources.scenes import drawing
from unialign_jax.data.sources.scenes.language import parse_caption
from unialign_jax.data.sources.scenes.world import LEVELS, Scene, same
from unialign_jax.data.tasks import Task
from unialign_jax.evaluation.scenes.items import Item
from unialign_jax.evaluation.scenes.kept import TOLERANCE, drift, keeps_scene
from unialign_jax.evaluation.scenes.maps import map_iou
from unialign_jax.evaluation.scenes.reader import read_scenes

if TYPE_CHECKING:
    from unialign_jax.evaluation.scenes.ask import Output

# From this IoU on a map counts as right in lists and galleries; the score is the IoU itself.
RIGHT_IOU = 0.5


@dataclasses.dataclass(frozen=True)
class Judgement:
    """The verdict on one output.

    Attributes:
      score: 1 right, 0 wrong; of maps the IoU.
      right: whether it is right; of an edit, whether the scene asked for is read.
      kept: of an edit, whether the rest was left alone; else None.
      scene: what was read; None where a caption is no caption, and for answers and maps.
    """

    score: float
    right: bool
    kept: bool | None = None
    scene: Scene | None = None


def judge(
    items: Sequence[Item], outputs: Sequence[Output], scenes: Sequence[Scene] | None = None
) -> list[Judgement]:
    """The verdicts on outputs.

    generate, compose: right when every attribute of the scene is read. caption: when it parses to
    the scene. answer: when it is the answer, whatever the case and the spaces. edit: right when the
    scene asked for is read and the rest is kept. perceive: the IoU.

    Args:
      items: of one task.
      outputs: one per item.
      scenes: what pictures show, where that is known; else they are read.
    """
    if not items:
        return []
    task = items[0].task
    if task is Task.ANSWER:
        return [_answer(item, cast(str, out)) for item, out in zip(items, outputs, strict=True)]
    if task is Task.CAPTION:
        return [_caption(item, cast(str, out)) for item, out in zip(items, outputs, strict=True)]
    pictures = cast("Sequence[np.ndarray]", outputs)
    if task is Task.PERCEIVE:
        return [_map(item, picture) for item, picture in zip(items, pictures, strict=True)]
    if scenes is None:
        scenes = [found.scene for found in read_scenes(pictures, items[0].example.truth.level)]
    found = []
    for item, picture, scene in zip(items, pictures, scenes, strict=True):
        right = same(scene, item.example.truth)
        kept = _kept(item, picture, scene) if task is Task.EDIT else None
        found.append(Judgement(float(right and kept is not False), right, kept, scene))
    return found


def _answer(item: Item, text: str) -> Judgement:
    right = " ".join(text.lower().split()) == item.example.answer
    return Judgement(float(right), right)


def _caption(item: Item, text: str) -> Judgement:
    scene = parse_caption(text, LEVELS[item.example.truth.level])
    right = scene is not None and same(scene, item.example.truth)
    return Judgement(float(right), right, scene=scene)


def _map(item: Item, picture: np.ndarray) -> Judgement:
    truth = item.truth_image()
    assert truth is not None
    score = map_iou(truth, picture, item.kind)
    return Judgement(score, score >= RIGHT_IOU)


def _kept(item: Item, picture: np.ndarray, read: Scene) -> bool:
    before, after = item.example.sources[0], item.example.truth
    if not keeps_scene(before, after, read):
        return False
    wanted = drawing.render(after, item.pixels)
    grid = LEVELS[after.level].grid
    return drift(item.sources[0], wanted, picture, grid) <= TOLERANCE
