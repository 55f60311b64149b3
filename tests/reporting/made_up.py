"""A run and its scores with made-up numbers, in the layouts that training and evaluation write."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from PIL import Image

from unialign_jax import config as configs

TINY = Path(__file__).parents[1] / "training" / "tiny_config.py"
SCORES = {
    "generate": 0.955,
    "caption": 0.87,
    "answer": 0.7725,
    "edit": 0.6105,
    "perceive": 0.684,
    "compose": 0.865,
}
BASELINES = {"majority": 0.035, "nearest": 0.12}
PIXELS = 16
STEPS = 40


def write_run(folder: Path, *, steps: int = STEPS, data: str = "data") -> Path:
    """A run directory: config, metrics, two sample grids, a last checkpoint without content."""
    run = folder / "run"
    (run / "samples").mkdir(parents=True)
    (run / "checkpoints" / str(steps)).mkdir(parents=True)
    overrides = [f"--config.train.steps={steps}", f"--config.data.path={data}"]
    configs.save_json(configs.load_config(str(TINY), overrides), run / "config.json")
    lines = [metrics_line(step, steps) for step in range(1, steps + 1)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step in (steps // 2, steps):
        Image.new("RGB", (30, 20), (step, 0, 0)).save(run / "samples" / f"step_{step:08d}.png")
    return run


def metrics_line(step: int, steps: int) -> dict[str, Any]:
    loss = math.exp(-4 * step / steps)
    return {
        "step": step,
        "task": ("generate", "edit", "answer")[step % 3],
        "loss": 2 * loss,
        "loss/image": loss,
        "loss/text": 0.5 + loss,
        "grad_norm": 1.0,
        "lr": 1e-3 * (1 - step / steps),
        "images_per_second": 16.0,
    }


def write_scores(folder: Path, tasks: tuple[str, ...] = tuple(SCORES)) -> Path:
    """A folder as `unialign evaluate scenes` leaves it, three items per task; the last is wrong."""
    shown = folder / "scores" / "shown"
    shown.mkdir(parents=True)
    entries, lines = [], []
    for task in tasks:
        for number in range(3):
            entry = item(task, number)
            for name, colour in (("source", 60), ("truth", 120), ("made", 180)):
                Image.new("RGB", (PIXELS, PIXELS), (colour,) * 3).save(shown / f"{name}.png")
            entries.append(entry)
            truth = {"background": "grey", "things": [thing("red")]}
            read = {"background": "white" if number == 2 else "grey", "things": [thing("red")]}
            line = {key: entry[key] for key in ("id", "task", "kind", "right", "score")}
            lines.append({**line, "truth": truth, "read": read if number else truth})
    (shown / "shown.json").write_text(json.dumps(entries))
    (folder / "scores" / "items.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (folder / "scores" / "scores.json").write_text(json.dumps(scores_of(tasks)))
    return folder / "scores"


def item(task: str, number: int) -> dict[str, Any]:
    says = task in ("caption", "answer")
    sources = {"generate": 0, "compose": 2}.get(task, 1)
    return {
        "id": f"{task}-{number}",
        "task": task,
        "kind": {"edit": "recolour", "answer": "colour", "compose": "2 references"}.get(task, task),
        "text": "" if task == "caption" else f"do {task} number {number} <b>&",
        "sources": ["source.png"] * sources,
        "truth": None if says else "truth.png",
        "made": None if says else "made.png",
        "truth_text": "a red circle" if says else "",
        "made_text": f"{task} said {number} <i>" if says else "",
        "score": 0.25 if number == 2 else 1.0,
        "right": number != 2,
    }


def thing(colour: str) -> dict[str, str]:
    return {"size": "large", "colour": colour, "shape": "circle", "place": "top left"}


def scores_of(tasks: tuple[str, ...]) -> dict[str, Any]:
    details = {
        task: {
            "items": 200,
            "interval": [SCORES[task] - 0.05, SCORES[task] + 0.03],
            "by_kind": {
                kind: {"items": 100, "score": share}
                for kind, share in (("first kind", 0.8125), ("second kind", 0.4375))
            },
            "by_attribute": {"shape": 0.9375, "place": 0.5625},
        }
        for task in tasks
    }
    return {
        "level": "demo",
        "pixels": PIXELS,
        "items": 200,
        "seed": 0,
        "split": "held_out",
        "scores": {task: SCORES[task] for task in tasks},
        "baselines": {
            task: BASELINES | ({"copy": 0.01} if task == "edit" else {}) for task in tasks
        },
        "details": details,
        "confusion": {
            "colour": {"labels": ["red", "blue", "none"], "counts": [[9, 1, 0], [0, 7, 3], [0] * 3]}
        },
    }
