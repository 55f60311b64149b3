"""Training as two real processes: the same losses as one process on the same devices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
TINY = Path(__file__).parent / "tiny_config.py"


def train(
    workdir: Path, data: Path, *launcher: str, devices: int, options: Sequence[str] = ()
) -> list[dict[str, float]]:
    """Four steps with `unialign train`; the lines of metrics.jsonl."""
    call = [
        sys.executable,
        "-m",
        "unialign_jax",
        "train",
        f"--config={TINY}",
        f"--workdir={workdir}",
    ]
    call += [f"--config.data.path={data}", "--config.train.steps=4", *options]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "DEVICES": str(devices),
        "JAX_NUM_CPU_DEVICES": str(devices),
    }
    done = subprocess.run([*launcher, *call], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_train_as_one_process_does(photos, tmp_path):
    together = train(tmp_path / "two", photos, str(ROOT / "launch/local.sh"), "2", devices=2)
    alone = train(tmp_path / "one", photos, devices=4)
    assert [line["step"] for line in together] == [1, 2, 3, 4]
    for name in ("loss", "loss/image", "loss/text", "loss/contrastive", "grad_norm"):
        np.testing.assert_allclose(
            [line[name] for line in together], [line[name] for line in alone], rtol=1e-5
        )


@pytest.mark.slow
def test_two_processes_start_from_a_bundle_as_one_process_does(photos, tmp_path):
    """Each process reads what its devices hold of a model that is split over all four."""
    from unialign_jax.sampling.bundling import bundle_run

    first = train(tmp_path / "first", photos, devices=4)
    bundle_run(tmp_path / "first", tmp_path / "bundle")
    options = (
        f"--config.init_from={tmp_path / 'bundle'}",
        "--config.mesh.data=1",
        "--config.mesh.fsdp=4",
    )
    launcher = (str(ROOT / "launch/local.sh"), "2")
    together = train(tmp_path / "two", photos, *launcher, devices=2, options=options)
    alone = train(tmp_path / "one", photos, devices=4, options=options)
    for name in ("loss", "loss/image", "loss/text", "grad_norm"):
        np.testing.assert_allclose(
            [line[name] for line in together], [line[name] for line in alone], rtol=1e-5
        )
    assert together[0]["loss"] != pytest.approx(first[0]["loss"], rel=1e-3)
