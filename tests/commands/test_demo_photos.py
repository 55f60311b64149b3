"""The demo of photographs: its commands, scores and gallery."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.reporting.made_up import STEPS, write_run
from unialign_jax import cli
from unialign_jax.commands import demo_photos, demo_stages
from unialign_jax.data.tasks import Record, Task
from unialign_jax.evaluation import memorised
from unialign_jax.evaluation.memorised import Recall, psnr


def recalled(count: int, *, right: int) -> list[Recall]:
    """Pictures of one grey each, of which the first `right` were made as they should be."""
    found = []
    for number in range(count):
        truth = np.full((8, 8, 3), 20 * number, np.uint8)
        made = truth + 1 if number < right else np.zeros_like(truth)
        record = Record(str(number), Task.GENERATE, b"x", 8, 8, captions=(f"photo {number}",))
        caption = f"photo {number if number < right else 0}"
        found.append(
            Recall(record, truth, truth, Image.fromarray(made), caption, psnr(made, truth))
        )
    return found


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """The commands that were called; none is run, and the model is made up."""
    found: list[list[str]] = []

    def call(arguments: list[str]) -> int:
        found.append(list(arguments))
        if arguments[0] == "train":
            write_run(tmp_path)
        return 0

    made = {"generate": recalled(4, right=3), "edit": recalled(2, right=1)}
    monkeypatch.setattr(demo_stages, "call", call)
    monkeypatch.setattr("unialign_jax.training.speed.step_seconds", lambda config: 0.5)
    monkeypatch.setattr("unialign_jax.sampling.pipeline.Pipeline.from_pretrained", lambda path: 0)
    monkeypatch.setattr("unialign_jax.data.prepared.Prepared", lambda path: path)
    monkeypatch.setattr(memorised, "recall", lambda *args, **options: made)
    return found


def test_the_photographs_stay_reachable_by_their_config(called, tmp_path, capsys):
    call = ["demo", "--config", "photos:small", "--workdir", str(tmp_path), "--steps", str(STEPS)]
    assert cli.main(call) == 0
    assert [arguments[0] for arguments in called] == ["prepare", "train", "report"]
    assert called[0][1] == "photos"
    for field in ("train.steps", "optimizer.decay_steps"):
        assert f"--config.{field}={STEPS}" in called[1]
    assert "--config.optimizer.warmup_steps=4" in called[1]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["scores"] == {"generate": 0.75, "caption": 0.75, "edit": 0.5}
    assert summary["baselines"]["generate"] == 0.25
    assert summary["steps"] == STEPS
    assert "3 of 4 photographs reproduced" in capsys.readouterr().out


def test_the_gallery_shows_truths_samples_and_edits(tmp_path):
    made = {"generate": recalled(4, right=3), "edit": recalled(2, right=1)}
    demo_photos.draw_gallery(made, tmp_path / "all.png")
    demo_photos.draw_gallery(made | {"edit": []}, tmp_path / "some.png")
    sizes = [Image.open(tmp_path / name).size for name in ("all.png", "some.png")]
    assert sizes[0][1] > sizes[1][1] + 3 * 112


@pytest.mark.slow
def test_a_short_demo_of_photographs_runs_to_its_end(tmp_path):
    pytest.importorskip("skimage")
    # The batch is split over the fake devices of the tests.
    call = ["demo", "--config", "photos:small", "--workdir", str(tmp_path), "--steps", "12"]
    assert cli.main([*call, "--config.train.global_batch=8"]) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert {"gallery.png", "report.html", "summary.json", "run", "photos"} <= names
