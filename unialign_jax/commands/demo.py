"""`unialign demo`: the whole path on this machine, from photographs to pictures and captions."""

from __future__ import annotations

import argparse
import importlib
import json
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unialign_jax.evaluation.memorised import Recall

HELP = "train on bundled photographs, sample, and show the pictures; no downloads"

_EPILOG = """\
inputs   none: twelve photographs come with scikit-image (the [demo] extra)
outputs  in --workdir: photos/ (records), run/ (checkpoints, logs), gallery.png, summary.json

A demo that was stopped continues with the same command. It runs the commands it prints.

example  unialign demo --workdir demo"""

EDITS_SHOWN = 6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "--workdir", type=Path, default=Path("unialign_demo"), help="default: ./unialign_demo"
    )
    parser.add_argument("--steps", type=_positive, help="training steps (default: the config's)")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def run(args: argparse.Namespace, extra: Sequence[str]) -> int:
    """Prepares, trains, samples, scores and draws; see HELP."""
    from unialign_jax.config import load_json
    from unialign_jax.data.prepared import Prepared
    from unialign_jax.evaluation import memorised
    from unialign_jax.sampling.pipeline import Pipeline

    begin = time.monotonic()
    photos, workdir = args.workdir / "photos", args.workdir / "run"
    code = _call(["prepare", "photos", "--out", str(photos), "--size", "64"])
    if code:
        return code
    training = ["train", "--config", "photos:small", "--workdir", str(workdir)]
    training += [f"--config.data.path={photos}", *extra]
    if args.steps:
        training += [f"--config.train.steps={args.steps}"]
        training += [f"--config.optimizer.decay_steps={args.steps}"]
        training += [f"--config.optimizer.warmup_steps={min(50, args.steps // 10)}"]
    trained_from = time.monotonic()
    code = _call(training)
    if code:
        return code
    train_seconds = time.monotonic() - trained_from

    config = load_json(workdir / "config.json")
    print("sampling every photograph, its caption, and some edits")
    pipe = Pipeline.from_pretrained(workdir)
    made = memorised.recall(
        pipe, Prepared(photos), config["data"]["image_size"], edits=2 * EDITS_SHOWN
    )
    scores = memorised.score(made)
    gallery = args.workdir / "gallery.png"
    draw_gallery(made, gallery)
    summary = {
        "seconds": {"total": time.monotonic() - begin, "train": train_seconds},
        "steps": config["train"]["steps"],
        "images_per_second": _last_rate(workdir / "metrics.jsonl"),
        "scores": {
            "generate": scores.generate,
            "caption": scores.caption,
            "edit": scores.edit,
        },
        # One answer for every photograph would be right once.
        "baselines": dict.fromkeys(("generate", "caption"), 1 / max(len(made["generate"]), 1))
        | {"edit": 1 / max(len(made["edit"]), 1)},
        "psnr_db": {
            "generate": scores.psnr_generate,
            "edit": scores.psnr_edit,
            "mean_picture": scores.psnr_mean_picture,
        },
    }
    (args.workdir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    count = len(made["generate"])
    print(
        f"{scores.generate * count:.0f} of {count} photographs reproduced (mean "
        f"{scores.psnr_generate:.1f} dB, the mean picture {scores.psnr_mean_picture:.1f} dB), "
        f"{scores.caption * count:.0f} captions exact, "
        f"{scores.edit * len(made['edit']):.0f} of {len(made['edit'])} edits right, "
        f"in {summary['seconds']['total'] / 60:.1f} minutes: {gallery}"
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


def _call(arguments: list[str]) -> int:
    """Runs another command of this program, showing it as one would type it."""
    print("$ unialign", shlex.join(arguments), flush=True)
    command = importlib.import_module(f"unialign_jax.commands.{arguments[0]}")
    parser = argparse.ArgumentParser(prog=f"unialign {arguments[0]}", allow_abbrev=False)
    command.add_arguments(parser)
    args, extra = parser.parse_known_args(arguments[1:])
    return command.run(args, extra)


def _last_rate(metrics: Path) -> float | None:
    rate = None
    for line in metrics.read_text().splitlines():
        rate = json.loads(line).get("images_per_second", rate)
    return rate
