"""What the tasks, baselines and kinds are called in a report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

TASKS = ("generate", "caption", "answer", "edit", "perceive", "compose")

# What goes in, what comes out, and what counts as right.
ASKED = {
    "generate": "words to picture; right when every attribute of the scene is",
    "caption": "picture to words; right when they say exactly the scene",
    "answer": "question about a picture; right when the answer is exact",
    "edit": "picture and instruction; right when the edit is and the rest is kept",
    "perceive": "picture to segmentation, depth or edges; mean IoU",
    "compose": "pictures of single things to one scene; right when every attribute is",
}

BASELINES = {
    "majority": "what training says most often to questions of the kind",
    "nearest": "what the nearest training example says",
    "copy": "the source of the edit, unchanged",
}

SPLITS = {
    "held_out": "combinations of size, colour, shape and place that training never shows",
    "seen": "combinations that training shows, in scenes that it does not",
}

# The score of a map is a mean and no share of right ones.
MEAN_OF = {"perceive": "mean IoU"}


def in_order(tasks: Iterable[str]) -> list[str]:
    """Tasks as they are listed everywhere; unknown ones last."""
    tasks = list(tasks)
    return [task for task in TASKS if task in tasks] + [t for t in tasks if t not in TASKS]


def world_of(scores: Mapping[str, Any]) -> str:
    """`level demo, 16 pixels`: what every table of scores is about."""
    return f"level {scores['level']}, {scores['pixels']} pixels"


def thing_in_words(thing: Mapping[str, str]) -> str:
    """`small cyan circle top left`."""
    return " ".join(thing[name] for name in ("size", "colour", "shape", "place"))


def colour_of(task: str) -> int:
    """The colour of a task in every chart."""
    return TASKS.index(task) if task in TASKS else len(TASKS) - 1


def scene_in_words(scene: Mapping[str, Any]) -> str:
    """`small cyan circle top left, large red square bottom right, on grey`."""
    things = [thing_in_words(thing) for thing in scene["things"]]
    return f"{', '.join(things) or 'nothing'}, on {scene['background']}"


def parameters_in_words(count: int) -> str:
    """`2.4 M`."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {letter}"
    return str(count)


def minutes_in_words(seconds: float) -> str:
    """`45 seconds`, `7.4 minutes`, `2.1 hours`."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    if seconds < 5400:
        return f"{seconds / 60:.1f} minutes"
    return f"{seconds / 3600:.1f} hours"
