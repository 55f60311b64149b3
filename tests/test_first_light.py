"""From JSONL lines with photographs to samples, through the commands that a user types."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unialign_jax.data.sources.photos import write_photos

ROOT = Path(__file__).parents[1]
DRIVE = ROOT / "tests" / "training" / "drive.py"
SEMGEN = Path(os.environ.get("UNIALIGN_SEMGEN_BENCH", ROOT.parent / "shared/data/semgen_bench"))
STEPS = 60
SMALL = {
    "model.width": 64,
    "model.heads": 2,
    "model.layers": 2,
    "model.text_width": 64,
    "objective.align_depth": 1,
    "text_encoder.width": 64,
    "text_encoder.heads": 2,
    "text_encoder.mlp_width": 64,
    "text_encoder.layers": 1,
    "train.steps": STEPS,
    "train.log_every": 1,
    "train.sample_every": 0,
    "train.global_batch": 6,
    "optimizer.decay_steps": 0,
    "optimizer.warmup_steps": 5,
    "checkpoint.every_steps": 10,
}


def call(*arguments: object, code: int = 0, strike: str = "") -> str:
    """Runs `unialign ARGUMENTS` in a process of its own and returns what it printed."""
    start = [str(DRIVE), *strike.split()] if strike else ["-m", "unialign_jax"]
    result = subprocess.run(
        [sys.executable, *start, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == code, result.stderr[-3000:]
    return result.stdout + result.stderr


def train(data: Path, run: Path, *, strike: str = "", code: int = 0, **changes: object) -> None:
    options = {**SMALL, "data.path": data, **{k.replace("__", "."): v for k, v in changes.items()}}
    overrides = [f"--config.{key}={value}" for key, value in options.items()]
    call("train", "--config", "photos", "--workdir", run, *overrides, strike=strike, code=code)


def metrics(run: Path) -> list[dict]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    timing = ("images_per_second", "data_wait")
    return [{k: v for k, v in line.items() if k not in timing} for line in lines]


def sample(run: Path, task: str, items: list[dict], out: Path, *options: object) -> list[dict]:
    jobs = out.with_suffix(".jsonl")
    jobs.write_text("".join(json.dumps(item) + "\n" for item in items))
    call(
        "sample",
        "--model",
        run,
        "--task",
        task,
        "--input",
        jobs,
        "--out",
        out,
        "--steps",
        4,
        *options,
    )
    results = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [result["status"] for result in results] == ["ok"] * len(items)
    return results


@pytest.mark.slow
def test_photographs_train_survive_a_kill_and_are_sampled(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    data, alone, struck = tmp_path / "data", tmp_path / "alone", tmp_path / "struck"
    lines = write_photos(tmp_path / "raw", size=64, edits=1)
    call("prepare", "jsonl", "--input", *lines, "--out", data, "--train-tokenizer", 512)

    train(data, alone)
    train(data, struck, strike="SIGKILL logged 33", code=-signal.SIGKILL)
    train(data, struck)
    expected, got = metrics(alone), metrics(struck)
    assert got == expected
    assert [line["step"] for line in got] == list(range(1, STEPS + 1))
    for term in ("loss", "loss/image", "loss/text", "loss/contrastive"):
        values = [line[term] for line in expected if line["task"] == "generate"]
        assert np.mean(values[-8:]) < 0.9 * np.mean(values[:8]), term

    folder = lines[0].parent
    photo = next(folder.rglob("*.png"))
    prompt = json.loads(lines[0].read_text().splitlines()[0])["conversations"][0]["value"]
    made = sample(struck, "generate", [{"prompt": prompt}, {"prompt": "a cup"}], tmp_path / "g")
    assert Image.open(tmp_path / "g" / made[0]["outputs"][0]).size == (64, 64)
    edit = {"image": str(photo), "instruction": "turn it upside down"}
    made = sample(struck, "edit", [edit], tmp_path / "e")
    assert Image.open(tmp_path / "e" / made[0]["outputs"][0]).size == (64, 64)
    assert isinstance(
        sample(struck, "caption", [{"image": str(photo)}], tmp_path / "c")[0]["text"], str
    )


@pytest.mark.slow
@pytest.mark.skipif(not SEMGEN.is_dir(), reason="needs the SemGen-Bench photographs")
def test_long_real_captions_train_and_are_sampled(tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    call(
        *("prepare", "semgen", "--input", SEMGEN, "--out", data, "--limit", 24),
        *("--size", 64, "--train-tokenizer", 512),
    )
    train(
        data,
        run,
        train__steps=30,
        data__text_length=96,
        model__text_positions=96,
        data__mixture__edit=0.0,
    )
    values = [line["loss/text"] for line in metrics(run)]
    assert np.mean(values[-5:]) < np.mean(values[:5])
    photo = next((SEMGEN / "images").glob("*.jpg"))
    items, root = [{"image": photo.name}], ("--image-root", photo.parent)
    assert sample(run, "caption", items, tmp_path / "c", *root)[0]["text"] is not None
