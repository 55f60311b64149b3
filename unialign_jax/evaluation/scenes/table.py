"""Scores, intervals and baselines as a text for a terminal."""

from __future__ import annotations

from typing import Any

from unialign_jax.data.tasks import Task

BASELINES = ("majority", "nearest", "copy")
SPLIT_WORDS = {"held_out": "held-out combinations", "seen": "combinations of training"}


def table(scores: dict[str, Any]) -> str:
    """What `scores.json` holds as a table, in percent; the level stands in its heading."""
    heading = (
        f"scenes, level {scores['level']}, {scores['pixels']} pixels, "
        f"{SPLIT_WORDS[scores['split']]}, {scores['items']} items per task, seed {scores['seed']}"
    )
    rows: list[tuple[str, ...]] = [("task", "score", "95 % interval", *BASELINES, "counted")]
    for task, score in scores["scores"].items():
        details, baselines = scores["details"][task], scores["baselines"][task]
        low, high = details["interval"]
        rows.append(
            (
                task,
                percent(score),
                f"{percent(low)} to {percent(high)}",
                *(percent(baselines[n]) if n in baselines else "" for n in BASELINES),
                _counted(task, details),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    # Words to the left, numbers to the right.
    lines = [
        "  ".join(
            cell.ljust(width) if k in (0, len(row) - 1) else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([heading, *lines])


def percent(share: float) -> str:
    """A share of 1 in percent, to a tenth."""
    return f"{100 * share:.1f}"


def _counted(task: str, details: dict[str, Any]) -> str:
    """What the score of a task counts."""
    if task == Task.PERCEIVE:
        return "mean IoU"
    if task == Task.EDIT:
        return f"right {percent(details['right'])} and the rest kept {percent(details['kept'])}"
    if task == Task.ANSWER:
        return "the answer"
    return "every attribute"
