"""The examination of a model on scenes: ask, judge, compare with what needs no model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from unialign_jax.data.sources.scenes.world import Level, Scene
from unialign_jax.data.tasks import Task
from unialign_jax.evaluation.scenes.ask import ask
from unialign_jax.evaluation.scenes.baselines import TrainingSet, baselines
from unialign_jax.evaluation.scenes.compare import attribute_shares, confusion
from unialign_jax.evaluation.scenes.intervals import normal, wilson
from unialign_jax.evaluation.scenes.items import TASKS, Item, make_items
from unialign_jax.evaluation.scenes.judge import Judgement, judge

if TYPE_CHECKING:
    from unialign_jax.evaluation.scenes.ask import Output
    from unialign_jax.sampling.pipeline import Pipeline

TRAINING_EXAMPLES = 5000
# Whose scenes are read back and confused.
READ = (Task.GENERATE, Task.CAPTION, Task.EDIT, Task.COMPOSE)
CONFUSED = (Task.GENERATE, Task.CAPTION)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One item, what the model made of it, and what that is worth."""

    item: Item
    output: Output
    judgement: Judgement


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The results of a model.

    Attributes:
      scores: what `scores.json` holds; see docs/evaluation.md.
      verdicts: per task, its items in their order.
    """

    scores: dict[str, Any]
    verdicts: dict[Task, list[Verdict]]


def evaluate(
    pipe: Pipeline,
    level: Level,
    pixels: int,
    items: int = 200,
    seed: int = 0,
    tasks: Sequence[Task] = TASKS,
    *,
    split: str = "held_out",
    batch: int = 64,
    training_examples: int = TRAINING_EXAMPLES,
    advance: Callable[[int], None] = lambda count: None,
) -> Evaluation:
    """Examines a model.

    Args:
      pipe: the model.
      level: of the world that it was trained on.
      pixels: height of the images.
      items: per task.
      seed: of the items and of the sampling.
      tasks: which of the six.
      split: "held_out" or "seen"; see `items.make_items`.
      batch: items computed at once.
      training_examples: per task, for the baselines; 0 leaves the baselines out.
      advance: told how many more items were sampled.
    """
    verdicts: dict[Task, list[Verdict]] = {}
    without: dict[str, dict[str, float]] = {}
    for task in tasks:
        asked = make_items(level, task, pixels, items, seed=seed, split=split)
        outputs = ask(pipe, asked, seed=seed, batch=batch, advance=advance)
        verdicts[task] = [
            Verdict(*parts) for parts in zip(asked, outputs, judge(asked, outputs), strict=True)
        ]
        without[str(task)] = {}
        if training_examples:
            training = TrainingSet(level, task, pixels, training_examples, seed)
            without[str(task)] = baselines(asked, training)
    confused = [pair for task in CONFUSED for pair in _scenes(verdicts.get(task, []))]
    scores = {
        "level": level.name,
        "pixels": pixels,
        "items": items,
        "seed": seed,
        "split": split,
        "scores": {
            str(task): _mean([verdict.judgement.score for verdict in found])
            for task, found in verdicts.items()
        },
        "baselines": without,
        "baseline_examples": training_examples,
        "details": {str(task): _details(task, found) for task, found in verdicts.items()},
        "confusion": confusion(level.name, confused) if confused else {},
    }
    return Evaluation(scores, verdicts)


def _details(task: Task, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Interval, kinds and attributes of one task."""
    values = [verdict.judgement.score for verdict in verdicts]
    exact = task is not Task.PERCEIVE
    low, high = wilson(round(sum(values)), len(values)) if exact else normal(values)
    kinds = sorted({verdict.item.kind for verdict in verdicts})
    details: dict[str, Any] = {
        "items": len(verdicts),
        "interval": [low, high],
        "by_kind": {
            kind: _summary(task, [v for v in verdicts if v.item.kind == kind]) for kind in kinds
        },
    }
    if task in READ:
        details["by_attribute"] = attribute_shares(_scenes(verdicts))
    if task is Task.EDIT:
        details |= _edit_parts(verdicts)
    if task is Task.CAPTION:
        details["unparseable"] = _mean([v.judgement.scene is None for v in verdicts])
    return details


def _summary(task: Task, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    score = _mean([verdict.judgement.score for verdict in verdicts])
    parts = _edit_parts(verdicts) if task is Task.EDIT else {}
    return {"items": len(verdicts), "score": score, **parts}


def _edit_parts(verdicts: Sequence[Verdict]) -> dict[str, float]:
    return {
        "right": _mean([v.judgement.right for v in verdicts]),
        "kept": _mean([bool(v.judgement.kept) for v in verdicts]),
    }


def _scenes(verdicts: Sequence[Verdict]) -> list[tuple[Scene, Scene | None]]:
    return [(verdict.item.example.truth, verdict.judgement.scene) for verdict in verdicts]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else 0.0
