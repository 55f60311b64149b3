"""The demo of drawn scenes: its commands, its summary."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unialign_jax.commands.demo_stages import Stage, last_checkpoint, run_stage, schedule_overrides

if TYPE_CHECKING:
    from unialign_jax.reporting.diary import Diary
    from unialign_jax.reporting.material import Material

TEACHER = "scenes"
ITEMS = 200


def describe(name: str, config: Mapping[str, Any]) -> str:
    """One line about what will be learnt."""
    pixels = config["data"]["image_size"]
    return f"scenes, level {variant(name).level}, {pixels} pixels: one model for all six tasks"


def variant(name: str) -> Any:
    """What the config file says of `scenes:NAME` beside the config: `level`, `records`, ..."""
    from unialign_jax.config import find_config
    from unialign_jax.config_files import run_file

    file, _, which = name.partition(":")
    return run_file(find_config(file)).VARIANTS[which]


def stages(
    workdir: Path,
    name: str,
    config: Mapping[str, Any],
    steps: int,
    seed: int,
    extra: Sequence[str] = (),
) -> list[Stage]:
    """The commands, from nothing to the report."""
    from unialign_jax.data.features import CACHE_FILE, cache_directory
    from unialign_jax.data.prepared import DATASET_FILE

    scenes, run, scores = workdir / "scenes", workdir / "run", workdir / "scores"
    world, data = variant(name), config["data"]
    made = [
        Stage(
            "prepare",
            (
                *("prepare", "scenes", "--out", str(scenes), "--level", world.level),
                *("--pixels", str(data["image_size"])),
                *("--records", str(world.records), "--seed", str(seed)),
            ),
            (scenes / DATASET_FILE).is_file,
        )
    ]
    features = data.get("features", "")
    if features:
        grid = config["objective"].get("image_alignment") == "tokens"
        arguments = ["cache", "--data", str(scenes), "--teacher", TEACHER, "--seed", str(seed)]
        arguments += ["--grid"] if grid else []
        arguments += ["--name", features] if features != TEACHER + "_grid" * grid else []
        there = cache_directory(scenes, features) / CACHE_FILE
        made.append(Stage("cache", tuple(arguments), there.is_file))
    training = ["train", "--config", name, "--workdir", str(run), f"--config.data.path={scenes}"]
    training += [f"--config.seed={seed}"] if seed != config.get("seed", 0) else []
    training += [*schedule_overrides(config, steps), *extra]
    made.append(Stage("train", tuple(training), lambda: last_checkpoint(run) >= steps))
    examine = ["evaluate", "scenes", "--model", str(run), "--items", str(ITEMS)]
    examine += ["--seed", str(seed), "--out", str(scores)]
    made.append(Stage("evaluate", tuple(examine), (scores / "scores.json").is_file))
    report = ["report", "--run", str(run), "--scores", str(scores)]
    report += ["--out", str(workdir / "report.html"), "--gallery", str(workdir / "gallery.png")]
    return [*made, Stage("report", tuple(report))]


def run(workdir: Path, made: Sequence[Stage], diary: Diary, begin: float) -> int:
    """Runs the commands and writes the summary; returns 0 or the code of the one that failed."""
    for stage in made:
        code = run_stage(stage, workdir, diary)
        if code:
            return code
    from unialign_jax.data.prepared import write_json
    from unialign_jax.reporting.material import gather

    material = gather(workdir / "run", workdir / "scores", diary.making())
    total = diary.seconds.get("total", 0.0) + time.monotonic() - begin
    found = summary(material, total)
    write_json(workdir / "summary.json", found)
    print(in_one_line(found, workdir))
    return 0


def summary(material: Material, total: float) -> dict[str, Any]:
    """What `summary.json` holds: scores and baselines as fractions of 1, times in seconds."""
    scores = material.scores
    assert scores is not None
    return {
        "level": scores["level"],
        "pixels": scores["pixels"],
        "items": scores["items"],
        "seconds": {"total": total, "train": material.train_seconds},
        "steps": material.steps,
        "images_per_second": material.images_per_second,
        "scores": scores["scores"],
        "baselines": scores["baselines"],
    }


def in_one_line(found: Mapping[str, Any], workdir: Path) -> str:
    """The summary for a terminal."""
    from unialign_jax.reporting.words import minutes_in_words

    scores = ", ".join(f"{task} {100 * score:.0f} %" for task, score in found["scores"].items())
    return (
        f"level {found['level']}, {found['pixels']} pixels, {found['items']} items per task: "
        f"{scores} in {minutes_in_words(found['seconds']['total'])}. "
        f"Open {workdir / 'report.html'} or {workdir / 'gallery.png'}"
    )
