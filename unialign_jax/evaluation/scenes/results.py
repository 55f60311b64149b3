"""The results of an evaluation as files.

```
OUT/scores.json       scores, baselines, details, confusion
OUT/items.jsonl       one line per item
OUT/shown/shown.json  a few items per task for reports; their images beside it as PNG
```
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from unialign_jax.data.prepared import write_json, write_text
from unialign_jax.data.sources.scenes.language import place_name
from unialign_jax.data.sources.scenes.world import LEVELS, Scene
from unialign_jax.data.tasks import Task
from unialign_jax.errors import UserError

if TYPE_CHECKING:
    from unialign_jax.evaluation.scenes.evaluation import Evaluation, Verdict

SCORES_FILE, ITEMS_FILE, SHOWN_FOLDER, SHOWN_FILE = (
    "scores.json",
    "items.jsonl",
    "shown",
    "shown.json",
)


@dataclasses.dataclass(frozen=True)
class Shown:
    """One item for the eye.

    Attributes:
      id: of the example.
      task: one of the six.
      kind: of edit, map or question, or the number of references.
      text: prompt, instruction or question; "" for a caption.
      sources: uint8 [P, P, 3] images that went in.
      truth: the image wanted; None where a text is.
      made: the image made; None where a text is.
      truth_text: the text wanted; "" where an image is.
      made_text: the text made; "" where an image is.
      score: see `judge.Judgement`.
      right: whether it counts as right.
    """

    id: str
    task: str
    kind: str
    text: str
    sources: tuple[np.ndarray, ...]
    truth: np.ndarray | None
    made: np.ndarray | None
    truth_text: str
    made_text: str
    score: float
    right: bool


def shown(evaluation: Evaluation, count: int = 8) -> list[Shown]:
    """The first `count` items of every task."""
    return [
        _show(verdict) for verdicts in evaluation.verdicts.values() for verdict in verdicts[:count]
    ]


def save(evaluation: Evaluation, folder: Path, count: int = 8) -> None:
    """Writes the files; those of an earlier evaluation are replaced.

    Args:
      evaluation: the results.
      folder: made if missing.
      count: items per task among the shown ones.

    Raises:
      UserError: the folder cannot be written.
    """
    lines = [line(v) for verdicts in evaluation.verdicts.values() for v in verdicts]
    write_text(folder / ITEMS_FILE, "".join(json.dumps(found) + "\n" for found in lines))
    _save_shown(shown(evaluation, count), folder / SHOWN_FOLDER)
    write_json(folder / SCORES_FILE, evaluation.scores)


def line(verdict: Verdict) -> dict[str, Any]:
    """An item's line in `items.jsonl`."""
    item, judgement = verdict.item, verdict.judgement
    asked = "question" if item.task is Task.ANSWER else "instruction"
    if item.task is Task.GENERATE:
        asked = "prompt"
    found: dict[str, Any] = {
        "id": item.example.id,
        "task": str(item.task),
        "kind": item.kind,
        asked: item.text,
    }
    if item.task is Task.ANSWER:
        found["truth"] = item.example.answer
    else:
        found["truth"] = as_json(item.example.truth)
    if isinstance(verdict.output, str):
        found["said"] = verdict.output
    if item.task not in (Task.ANSWER, Task.PERCEIVE):
        found["read"] = as_json(judgement.scene) if judgement.scene else None
    if judgement.kept is not None:
        found["kept"] = judgement.kept
    return {**found, "right": judgement.right, "score": round(judgement.score, 4)}


def as_json(scene: Scene) -> dict[str, Any]:
    """A scene in words."""
    level = LEVELS[scene.level]
    return {
        "background": scene.background,
        "things": [
            {
                "size": thing.size,
                "colour": thing.colour,
                "shape": thing.shape,
                "place": place_name(level, thing.place),
            }
            for thing in scene.things
        ],
    }


def _show(verdict: Verdict) -> Shown:
    item, output = verdict.item, verdict.output
    return Shown(
        id=item.example.id,
        task=str(item.task),
        kind=item.kind,
        text=item.text,
        sources=item.sources,
        truth=item.truth_image(),
        made=None if isinstance(output, str) else output,
        truth_text=item.truth_text(),
        made_text=output if isinstance(output, str) else "",
        score=verdict.judgement.score,
        right=bool(verdict.judgement.score if item.task is Task.EDIT else verdict.judgement.right),
    )


def _save_shown(items: Sequence[Shown], folder: Path) -> None:
    entries = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, item in enumerate(items):
            entry: dict[str, Any] = dataclasses.asdict(item) | {"sources": []}
            for k, picture in enumerate(item.sources):
                entry["sources"].append(_save_image(folder, f"{number:03d}-source-{k}", picture))
            for name, picture in (("truth", item.truth), ("made", item.made)):
                if picture is not None:
                    entry[name] = _save_image(folder, f"{number:03d}-{name}", picture)
            entries.append(entry)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error}).") from error
    write_text(folder / SHOWN_FILE, json.dumps(entries, indent=1) + "\n")


def _save_image(folder: Path, name: str, picture: np.ndarray) -> str:
    Image.fromarray(picture).save(folder / f"{name}.png")
    return f"{name}.png"


def load_shown(folder: Path) -> list[Shown]:
    """The shown items that `save` wrote to a folder.

    Raises:
      UserError: they are not there or cannot be read.
    """
    path = folder / SHOWN_FOLDER / SHOWN_FILE

    def picture(name: str | None) -> np.ndarray | None:
        return None if name is None else np.asarray(Image.open(path.parent / name).convert("RGB"))

    try:
        entries = json.loads(path.read_text("utf-8"))
        return [
            Shown(
                **entry
                | {
                    "sources": tuple(picture(name) for name in entry["sources"]),
                    "truth": picture(entry["truth"]),
                    "made": picture(entry["made"]),
                }
            )
            for entry in entries
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); evaluate again.") from error
