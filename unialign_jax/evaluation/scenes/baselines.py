"""What needs no model: training examples whose outputs are judged as a model's outputs are.

`majority` says what training says most often to questions of the same kind. `nearest` says what
the nearest training example says: of those with as many images, those whose text shares the largest
part of its words with the item's, and of these the one whose images differ least. `copy` returns
the source of an edit.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from unialign_jax.data.sources.scenes import drawing
from unialign_jax.data.sources.scenes.world import Level, Scene
from unialign_jax.data.tasks import Task
from unialign_jax.evaluation.scenes.compare import contents
from unialign_jax.evaluation.scenes.items import Item, make_item
from unialign_jax.evaluation.scenes.judge import judge
from unialign_jax.evaluation.scenes.templates import reading_size

if TYPE_CHECKING:
    from unialign_jax.evaluation.scenes.ask import Output


class TrainingSet:
    """The first training examples of a task, as items.

    Args:
      level: of the world.
      task: one of the six.
      pixels: height of the images.
      count: how many.
      seed: of the training set.
    """

    def __init__(self, level: Level, task: Task, pixels: int, count: int, seed: int):
        make = functools.partial(make_item, level, task, pixels, seed=seed, held_out=False)
        self.items = [make(index) for index in range(count)]
        self._small: dict[int, np.ndarray] = {}

    def majority(self, items: Sequence[Item]) -> list[Item]:
        """Per item, an example with the most frequent output of its kind; of several the first."""
        found = {}
        for kind in {item.kind for item in items}:
            alike = [item for item in self.items if item.kind == kind] or self.items
            counts = Counter(map(_key, alike))
            key, _ = counts.most_common(1)[0]
            found[kind] = next(item for item in alike if _key(item) == key)
        return [found[item.kind] for item in items]

    def nearest(self, items: Sequence[Item]) -> list[Item]:
        """Each item's nearest training example; of equally near ones the first."""
        overlap = _overlap([item.text for item in items], [item.text for item in self.items])
        counts = [np.array([len(i.source_scenes) for i in group]) for group in (items, self.items)]
        overlap[counts[0][:, None] != counts[1]] = -1
        nearest = overlap == overlap.max(1, keepdims=True)
        # Items with the same candidates are compared with their images all at once.
        groups: dict[bytes, list[int]] = {}
        for row, candidates in enumerate(nearest):
            groups.setdefault(candidates.tobytes(), []).append(row)
        found = np.zeros(len(items), int)
        for rows in groups.values():
            near = np.flatnonzero(nearest[rows[0]])
            found[rows] = near[0]
            if len(near) > 1 and items[rows[0]].source_scenes:
                wanted = np.stack([_small(items[row]) for row in rows])
                images = np.stack([self._image(int(i)) for i in near])
                found[rows] = near[((images**2).sum(1) - 2 * wanted @ images.T).argmin(1)]
        return [self.items[i] for i in found]

    def _image(self, index: int) -> np.ndarray:
        if index not in self._small:
            self._small[index] = _small(self.items[index])
        return self._small[index]


def baselines(items: Sequence[Item], training: TrainingSet) -> dict[str, float]:
    """Mean scores of the baselines on items of one task."""
    found = {
        name: judge(items, [_output(example) for example in chosen], _scenes(chosen))
        for name, chosen in (
            ("majority", training.majority(items)),
            ("nearest", training.nearest(items)),
        )
    }
    if items and items[0].task is Task.EDIT:
        found["copy"] = judge(
            items,
            [item.sources[0] for item in items],
            [item.source_scenes[0] for item in items],
        )
    return {
        name: float(np.mean([judgement.score for judgement in judgements] or [0.0]))
        for name, judgements in found.items()
    }


def _output(item: Item) -> Output:
    picture = item.truth_image()
    return item.truth_text() if picture is None else picture


def _scenes(items: Sequence[Item]) -> list[Scene]:
    return [item.example.truth for item in items]


def _key(item: Item) -> Hashable:
    """What two equal outputs share; scenes count as equal whatever the shifts."""
    if item.task is Task.PERCEIVE:
        picture = item.truth_image()
        return b"" if picture is None else picture.tobytes()
    scene = item.example.truth
    return item.truth_text() or (scene.background, contents(scene))


def _small(item: Item) -> np.ndarray:
    """The images that go in, drawn at the level's smallest height, as one vector."""
    pixels = reading_size(item.example.truth.level)
    images = [drawing.render(scene, pixels).ravel() for scene in item.source_scenes]
    return np.concatenate(images).astype(np.float32)


def _overlap(texts: Iterable[str], others: Iterable[str]) -> np.ndarray:
    """Words shared by two texts, as a share of the words in either: [texts, others]."""
    rows, columns = ([set(re.findall(r"\w+", text)) for text in group] for group in (texts, others))
    vocabulary = {word: k for k, word in enumerate(sorted(set().union(*rows, *columns)))}

    def table(group: list[set[str]]) -> np.ndarray:
        found = np.zeros((len(group), len(vocabulary)), np.float32)
        for line, words in zip(found, group, strict=True):
            line[[vocabulary[word] for word in words]] = 1
        return found

    a, b = table(rows), table(columns)
    shared = a @ b.T
    either = a.sum(1)[:, None] + b.sum(1) - shared
    return shared / np.maximum(either, 1)
