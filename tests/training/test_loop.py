"""The order of things in the loop: what is saved when, and what a bad end leaves behind.

The compiled step is replaced by one that counts, so these tests take no compilation.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unialign_jax.data import pipeline
from unialign_jax.errors import Interrupted, UserError
from unialign_jax.training import loop
from unialign_jax.training.setup import Setup

Hook = Callable[[int], dict[str, float]]


@pytest.fixture
def stepping(monkeypatch: pytest.MonkeyPatch) -> Callable[[Hook], list[str]]:
    """Installs a step whose metrics come from a function of the step; returns the tasks it saw."""

    def install(hook: Hook) -> list[str]:
        tasks: list[str] = []

        def get(self: object, task: str, batch: Any) -> tuple[Any, float]:
            def program(state: Any, batch: Any) -> tuple[Any, dict[str, jax.Array]]:
                tasks.append(task)
                step = int(state.step) + 1
                metrics = {"loss": 1.0 / step, "grad_norm": 1.0, **hook(step)}
                count = jax.device_put(np.int32(step), state.step.sharding)
                values = {name: jnp.float32(value) for name, value in metrics.items()}
                return state.replace(step=count), values

            return program, 0.0

        def init(self: Setup) -> Any:
            return jax.tree.map(
                lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding),
                self.abstract,
            )

        monkeypatch.setattr(loop.Programs, "get", get)
        monkeypatch.setattr(Setup, "init", init)
        return tasks

    return install


def steps_of(workdir: Path) -> list[int]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def saved_in(workdir: Path) -> list[str]:
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


def test_steps_are_logged_sampled_and_saved_at_their_intervals(
    tiny: dict, stepping: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = stepping(lambda step: {})
    tiny["train"] |= {"steps": 7, "log_every": 3, "sample_every": 4}
    tiny["checkpoint"] = {"every_steps": 3, "keep": 0}
    drawn = []

    def make_sample_grid(setup: Setup, tokenizer: Any) -> loop.SampleGrid:
        def sample_grid(state: Any, step: int) -> np.ndarray:
            drawn.append((int(state.step), step))
            return np.zeros((4, 4, 3), np.uint8)

        return sample_grid

    result = loop.train(tiny, tmp_path, make_sample_grid)
    assert result.step == 7 and result.values["loss"] == pytest.approx(1 / 7)
    assert tasks == ["generate", "edit"] * 3 + ["generate"]
    assert steps_of(tmp_path) == [3, 6, 7]
    assert saved_in(tmp_path) == ["3", "6", "7"]
    assert drawn == [(4, 4)]
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["step_00000004.png"]
    shown = capsys.readouterr().err
    assert f"samples at step 4: {tmp_path / 'samples' / 'step_00000004.png'}\n" in shown
    lines = [line for line in shown.splitlines() if line.startswith("step ")]
    assert "next: samples at step 4" in lines[0] and "next: end at step 7" in lines[1]


@pytest.mark.parametrize("at", [5, 6])
def test_a_diverged_step_stops_the_run_and_is_not_saved(
    tiny: dict, stepping: Any, tmp_path: Path, at: int
) -> None:
    stepping(lambda step: {"grad_norm": float("nan")} if step == at else {})
    tiny["checkpoint"] = {"every_steps": 2, "keep": 0}
    with pytest.raises(UserError, match=rf"step {at} \((generate|edit)\): grad_norm=nan"):
        loop.train(tiny, tmp_path)
    assert saved_in(tmp_path) == ["2", "4"]
    assert steps_of(tmp_path) == list(range(1, at))


def test_bad_data_stop_the_run_after_saving_it(
    tiny: dict, stepping: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepping(lambda step: {})
    original = pipeline.TrainIterator.__next__

    def fails(self: pipeline.TrainIterator) -> Any:
        item = original(self)
        if item[0] == 3:
            raise UserError("record 7 is damaged")
        return item

    monkeypatch.setattr(pipeline.TrainIterator, "__next__", fails)
    with pytest.raises(UserError, match="record 7 is damaged"):
        loop.train(tiny, tmp_path)
    assert saved_in(tmp_path) == ["2", "3"]
    monkeypatch.undo()


def test_a_stopped_run_continues_with_the_next_step(
    tiny: dict, stepping: Any, tmp_path: Path
) -> None:
    def stop_at_five(step: int) -> dict[str, float]:
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    before = stepping(stop_at_five)
    with pytest.raises(Interrupted, match="stopped by SIGTERM after step 5 of 8") as caught:
        loop.train(tiny, tmp_path)
    assert caught.value.exit_code == 75
    after = stepping(lambda step: {})
    assert loop.train(tiny, tmp_path).step == 8
    assert len(before) == 5 and after == ["edit", "generate", "edit"]
    assert steps_of(tmp_path) == list(range(1, 9))
    assert loop.train(tiny, tmp_path).values == {}


def test_another_config_in_the_same_directory_is_refused_before_anything_runs(
    tiny: dict, stepping: Any, tmp_path: Path
) -> None:
    tasks = stepping(lambda step: {})
    tiny["train"]["steps"] = 2
    loop.train(tiny, tmp_path)
    tiny["seed"] = 1
    with pytest.raises(UserError, match="seed: 0 -> 1"):
        loop.train(tiny, tmp_path)
    assert len(tasks) == 2
