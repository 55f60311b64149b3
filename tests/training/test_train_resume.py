"""Killed and stopped runs continue with the losses of a run that was left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from unialign_jax.training.loop import train

HERE = Path(__file__).parent
STEPS = 8


def start(workdir: Path, data: Path, strike: str = "", **overrides: object) -> subprocess.Popen:
    """Starts `unialign train` on one CPU device; `strike` is `SIGNAL POINT STEP`."""
    command = [sys.executable, str(HERE / "drive.py"), *strike.split()]
    command += ["train", "--config", str(HERE / "tiny_config.py"), "--workdir", str(workdir)]
    command += [f"--config.data.path={data}"]
    command += [f"--config.{key.replace('__', '.')}={value}" for key, value in overrides.items()]
    return subprocess.Popen(
        command,
        cwd=HERE.parents[1],
        env={
            **os.environ,
            "JAX_NUM_CPU_DEVICES": "1",
            "PYTHONPATH": str(HERE.parents[1]),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen, code: int = 0) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err[-3000:]
    return out + err


def lines_of(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def computed(line: dict) -> dict:
    """The part of a line that is a function of the config and the step."""
    return {k: v for k, v in line.items() if k not in ("images_per_second", "data_wait")}


def test_killed_and_stopped_runs_have_the_losses_of_an_undisturbed_one(
    photos: Path, tiny: dict, tmp_path: Path
) -> None:
    alone, struck = tmp_path / "alone", tmp_path / "struck"
    one_task = {"data__mixture__edit": 0.0}
    assert f"step {STEPS} reached" in finish(start(alone, photos, **one_task))

    finish(start(struck, photos, "SIGKILL logged 3", **one_task), -signal.SIGKILL)
    text = finish(start(struck, photos, "SIGINT logged 5", **one_task), 75)
    assert f"stopped by SIGINT after step 6 of {STEPS}" in text
    assert "The same command continues" in text
    text = finish(start(struck, photos, **one_task, checkpoint__keep=1))
    assert "changed since the last start: checkpoint.keep: 2 -> 1" in text
    assert f"continuing in {struck} after step 6" in text

    expected, got = lines_of(alone), lines_of(struck)
    assert [line["step"] for line in got] == list(range(1, STEPS + 1))
    assert [computed(line) for line in got] == [computed(line) for line in expected]
    fields = {"loss", "loss/image", "loss/text", "loss/contrastive", "grad_norm", "lr"}
    assert fields | {"task", "images_per_second", "data_wait"} <= set(expected[-1])
    assert "loss/align_image" not in expected[-1]
    assert [path.name for path in (struck / "checkpoints").iterdir()] == ["8"]
    assert list(struck.glob("events.out.tfevents.*"))

    # Eight devices here, one there: the finished run is read on another mesh.
    tiny["data"]["mixture"]["edit"] = 0.0
    result = train(tiny, struck)
    assert result.step == STEPS
    assert len(lines_of(struck)) == STEPS


@pytest.mark.slow
@pytest.mark.parametrize("strike", ["SIGKILL saving 2", "SIGKILL saving 4", "SIGTERM logged 4"])
def test_a_run_struck_at_any_point_has_the_losses_of_an_undisturbed_one(
    photos: Path, tmp_path: Path, strike: str
) -> None:
    alone, struck = tmp_path / "alone", tmp_path / "struck"
    finish(start(alone, photos))
    code = 75 if "SIGTERM" in strike else -signal.SIGKILL
    finish(start(struck, photos, strike), code)
    finish(start(struck, photos, train__sample_every=STEPS))

    expected, got = lines_of(alone), lines_of(struck)
    assert [line["task"] for line in expected[:4]] == ["generate", "edit"] * 2
    assert [computed(line) for line in got] == [computed(line) for line in expected]
    with Image.open(struck / "samples" / f"step_{STEPS:08d}.png") as image:
        assert image.mode == "RGB"
