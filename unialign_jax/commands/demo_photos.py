"""The demo of photographs: a dozen learnt by heart, sampled and shown beside the truth."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unialign_jax.commands.demo_stages import Stage, last_checkpoint, run_stage, schedule_overrides

if TYPE_CHECKING:
    from unialign_jax.evaluation.memorised import Recall
    from unialign_jax.reporting.diary import Diary

EDITS_SHOWN = 6


def describe(name: str, config: Mapping[str, Any]) -> str:
    """One line about what will be learnt."""
    pixels = config["data"]["image_size"]
    return f"twelve photographs with captions and edits, learnt by heart at {pixels} pixels"


def stages(
    workdir: Path,
    name: str,
    config: Mapping[str, Any],
    steps: int,
    seed: int,
    extra: Sequence[str] = (),
) -> list[Stage]:
    """The commands; sampling and scoring follow them."""
    from unialign_jax.data.prepared import DATASET_FILE

    photos, run = workdir / "photos", workdir / "run"
    training = ["train", "--config", name, "--workdir", str(run), f"--config.data.path={photos}"]
    training += [f"--config.seed={seed}"] if seed != config.get("seed", 0) else []
    training += [*schedule_overrides(config, steps), *extra]
    return [
        Stage(
            "prepare",
            ("prepare", "photos", "--out", str(photos), "--size", "64"),
            (photos / DATASET_FILE).is_file,
        ),
        Stage("train", tuple(training), lambda: last_checkpoint(run) >= steps),
        Stage("report", ("report", "--run", str(run), "--out", str(workdir / "report.html"))),
    ]


def run(workdir: Path, made: Sequence[Stage], diary: Diary, begin: float) -> int:
    """Runs the commands, samples every photograph, scores and draws; returns the exit code."""
    for stage in made:
        code = run_stage(stage, workdir, diary)
        if code:
            return code
    from unialign_jax.config import load_json
    from unialign_jax.data.prepared import Prepared
    from unialign_jax.evaluation import memorised
    from unialign_jax.reporting.material import gather
    from unialign_jax.sampling.pipeline import Pipeline

    trained = workdir / "run"
    print("sampling every photograph, its caption, and some edits")
    made_of = memorised.recall(
        Pipeline.from_pretrained(trained),
        Prepared(workdir / "photos"),
        load_json(trained / "config.json")["data"]["image_size"],
        edits=2 * EDITS_SHOWN,
    )
    scores = memorised.score(made_of)
    draw_gallery(made_of, workdir / "gallery.png")
    material = gather(trained, None, diary.making())
    total = diary.seconds.get("total", 0.0) + time.monotonic() - begin
    summary = {
        "seconds": {"total": total, "train": material.train_seconds},
        "steps": material.steps,
        "images_per_second": material.images_per_second,
        "scores": {
            "generate": scores.generate,
            "caption": scores.caption,
            "edit": scores.edit,
        },
        # One answer for every photograph would be right once.
        "baselines": dict.fromkeys(("generate", "caption"), 1 / max(len(made_of["generate"]), 1))
        | {"edit": 1 / max(len(made_of["edit"]), 1)},
        "psnr_db": {
            "generate": scores.psnr_generate,
            "edit": scores.psnr_edit,
            "mean_picture": scores.psnr_mean_picture,
        },
    }
    (workdir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    count = len(made_of["generate"])
    print(
        f"{scores.generate * count:.0f} of {count} photographs reproduced (mean "
        f"{scores.psnr_generate:.1f} dB, the mean picture {scores.psnr_mean_picture:.1f} dB), "
        f"{scores.caption * count:.0f} captions exact, "
        f"{scores.edit * len(made_of['edit']):.0f} of {len(made_of['edit'])} edits right, "
        f"in {total / 60:.1f} minutes: {workdir / 'gallery.png'}"
    )
    return 0


def draw_gallery(made: dict[str, list[Recall]], path: Path) -> None:
    """Draws truth and sample of every photograph, and some edits, as one PNG."""
    from unialign_jax.sampling.grid import contact_sheet

    rows = [[], []]
    sheets = []
    for item in made["generate"]:
        rows[0].append((item.truth, item.record.captions[0]))
        rows[1].append((item.made, item.caption or ""))
    half = (len(rows[0]) + 1) // 2
    for start in range(0, len(rows[0]), half):
        part = [row[start : start + half] for row in rows]
        sheets += [["photograph and its caption", *part[0]], ["generated, described", *part[1]]]
    shown = made["edit"][:EDITS_SHOWN]
    if shown:
        sheets.append(["given", *((i.source, i.record.instruction) for i in shown)])
        sheets.append(["wanted", *(i.truth for i in shown)])
        sheets.append(["edited", *(i.made for i in shown)])
    contact_sheet(sheets, cell=112).save(path)
