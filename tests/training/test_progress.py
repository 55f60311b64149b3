"""Progress: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io

from rich.console import Console

from unialign_jax.training.progress import (
    TrainProgress,
    describe,
    describe_milestone,
    duration,
)

VALUES = {"loss": 0.5, "loss/image": 0.25, "lr": 1e-3, "images_per_second": 8.0, "data_wait": 0.02}


def test_without_a_terminal_every_logged_step_is_a_line() -> None:
    out = io.StringIO()
    progress = TrainProgress(10, console=Console(file=out, width=40, soft_wrap=True))
    progress.message("starting in [run]")
    for step in (1, 2, 3):
        progress.step(step, VALUES, logged=step == 2)
    progress.close()
    lines = out.getvalue().splitlines()
    assert lines[0] == "starting in [run]"
    assert len(lines) == 2
    assert lines[1].startswith("step 2/10  loss 0.5  image 0.25  8.0 img/s  wait 2%  left 0:0")


def test_a_terminal_shows_a_bar_with_the_last_known_rates() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    progress = TrainProgress(10, 4, console=console)
    progress.step(5, VALUES, logged=True)
    progress.step(6, {"loss": 0.4}, logged=False)
    progress.close()
    shown = out.getvalue()
    assert "6/10" in shown and "loss 0.4" in shown and "8.0 img/s" in shown


def test_processes_that_stay_silent_write_nothing(capsys) -> None:
    progress = TrainProgress(10, visible=False)
    progress.message("hello")
    progress.step(1, VALUES, logged=True)
    progress.close()
    assert capsys.readouterr() == ("", "")


def test_numbers_are_written_shortly() -> None:
    assert describe({"loss": 1.23456, "grad_norm": 3.0}, 3723.4) == "loss 1.235  left 1:02:03"
    assert duration(59.6) == "1:00"
    assert duration(7) == "0:07"


def test_the_next_milestone_is_the_nearest_and_the_end_is_one() -> None:
    every = {"samples": 400, "checkpoint": 1000, "other": 0}
    assert describe_milestone(399, every, 1500, 0.5) == "next: samples at step 400 in 0:00"
    assert describe_milestone(400, every, 1500, 0.5) == "next: samples at step 800 in 3:20"
    assert describe_milestone(800, every, 1500) == "next: checkpoint at step 1000"
    assert describe_milestone(1999, every, 9000, 1).startswith("next: samples and checkpoint at")
    assert describe_milestone(1300, every, 1500, 0.01) == "next: end at step 1500 in 0:02"
    assert describe_milestone(1500, every, 1500, 0.01) == ""


def test_lines_and_the_bar_name_the_next_milestone() -> None:
    for terminal in (False, True):
        out = io.StringIO()
        console = Console(file=out, force_terminal=terminal, width=120, soft_wrap=True)
        progress = TrainProgress(10, milestones={"samples": 4}, console=console)
        progress.step(3, VALUES, logged=True)
        progress.close()
        assert "next: samples at step 4" in out.getvalue()


def test_time_left_leaves_compilation_out_whenever_it_happens(monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr("unialign_jax.training.progress.time.monotonic", lambda: now[0])
    out = io.StringIO()
    progress = TrainProgress(10, console=Console(file=out, soft_wrap=True))
    progress.exclude(30.0)
    progress.step(1, {"loss": 1.0}, logged=True)
    now[0] += 25.0
    progress.exclude(20.0)
    progress.step(2, {"loss": 1.0}, logged=True)
    # The second step took 5 seconds without compiling; eight steps are left.
    assert out.getvalue().splitlines()[-1].endswith("left 0:40  next: end at step 10 in 0:40")
