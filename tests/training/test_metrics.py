"""metrics.jsonl: whole lines only, each step once; values one step late; divergence stops."""

from __future__ import annotations

import json
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from unialign_jax.errors import UserError
from unialign_jax.training.metrics import (
    LaggedMetrics,
    MetricsWriter,
    StepReport,
    Throughput,
    check_finite,
    read_metrics,
    repair_lines,
)
from unialign_jax.training.run_directory import RunDirectory


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    run.create({"seed": 0})
    return run


def test_a_line_holds_a_step_and_its_values(run: RunDirectory) -> None:
    writer = MetricsWriter(run, 0, tensorboard=False)
    writer.write(1, {"task": "edit", "loss": 0.5})
    # Readable at once, by a program that watches the file.
    assert json.loads(run.metrics.read_text()) == {"step": 1, "task": "edit", "loss": 0.5}
    writer.close()


def test_float32_values_survive_bit_for_bit(run: RunDirectory) -> None:
    value = float(np.float32(1) / np.float32(3))
    writer = MetricsWriter(run, 0, tensorboard=False)
    writer.write(1, {"loss": value})
    writer.close()
    assert np.float32(read_metrics(run.metrics)[0]["loss"]) == np.float32(1) / np.float32(3)


def test_a_resumed_run_drops_the_torn_line_and_later_steps(run: RunDirectory) -> None:
    whole = "".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in (1, 2, 3, 4))
    run.metrics.write_text(whole + '{"step": 5, "lo')
    assert [line["step"] for line in read_metrics(run.metrics)] == [1, 2, 3, 4]
    writer = MetricsWriter(run, 2, tensorboard=False)
    writer.write(3, {"loss": 2.0})
    writer.close()
    lines = read_metrics(run.metrics)
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 1.0), (3, 2.0)]


def test_a_good_file_is_not_rewritten(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    before = path.stat().st_ino
    repair_lines(path, 1)
    assert path.stat().st_ino == before
    repair_lines(tmp_path / "none.jsonl", 1)


def test_tensorboard_gets_scalars_and_images(run: RunDirectory) -> None:
    writer = MetricsWriter(run, 0)
    writer.write(1, {"task": "edit", "loss": 0.5, "loss/image": 0.25})
    writer.image(1, "samples", np.zeros((4, 6, 3), np.uint8))
    writer.close()
    (events,) = run.path.glob("events.out.tfevents.*")
    content = events.read_bytes()
    for tag in (b"loss/image", b"samples", b"\x89PNG"):
        assert tag in content


def test_a_step_is_reported_when_the_next_one_is_under_way() -> None:
    lagged = LaggedMetrics()
    assert lagged.push(1, "edit", {"lr": jnp.float32(0.5), "loss": jnp.float32(2)}) is None
    first = lagged.push(2, "generate", {"loss": jnp.float32(3)})
    assert first == StepReport(1, "edit", {"loss": 2.0, "lr": 0.5})
    assert list(first.values) == ["loss", "lr"]
    assert lagged.flush() == StepReport(2, "generate", {"loss": 3.0})
    assert lagged.flush() is None


@pytest.mark.parametrize("name", ["loss", "loss/text", "grad_norm"])
def test_a_value_that_is_not_finite_stops_the_run_and_is_named(name: str) -> None:
    values = {"loss": 1.0, "loss/text": 2.0, "grad_norm": 0.1, "lr": 0.1, name: float("nan")}
    with pytest.raises(UserError, match=rf"step 7 \(edit\): {name}=nan"):
        check_finite(StepReport(7, "edit", values))


def test_excluded_time_does_not_lower_the_rates() -> None:
    throughput = Throughput()
    time.sleep(0.05)
    throughput.exclude(0.04)
    throughput.images(10)
    throughput.waited(0.001)
    values = throughput.read()
    assert values["images_per_second"] > 10 / 0.045
    assert 0 < values["data_wait"] < 0.5
    assert throughput.read()["data_wait"] == 0
