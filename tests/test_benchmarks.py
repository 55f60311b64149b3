"""The benchmarks run, check both sides against each other and say what they measured."""

from __future__ import annotations

import collections
import importlib.util
import json
import multiprocessing
import os
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.peer import profile, rounds, worker
from tests.project import ROOT

TINY = ["--size", "1x32", "--batch", "2", "--latents", "4", "--text", "4", "--rounds", "1"]


def run(script: str, out, *options: str, sizes: list[str] = TINY) -> dict:
    done = subprocess.run(
        [sys.executable, f"benchmarks/{script}.py", *sizes, *options, "--out", str(out)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.mark.parametrize("script", ["train_step", "sample_step"])
def test_ours_runs_alone_and_says_so(script, tmp_path):
    report = run(script, tmp_path / "out.json", "--no-torch", "--profile", str(tmp_path / "trace"))
    assert set(report) == {"date", "command", "device", "versions", "figures"}
    assert "torch" not in report["versions"]
    (figures,) = report["figures"]
    assert list(figures["sides"]) == ["jax"] and "faster_than" not in figures
    assert figures["sides"]["jax"]["flops"] > 0
    assert sum(figures["profile"]["milliseconds"].values()) > 0


@pytest.mark.parametrize("script", ["train_step", "sample_step"])
def test_both_sides_agree_and_are_compared(script, tmp_path):
    pytest.importorskip("torch")
    # What torch.compile adds takes minutes on two cores: slow tests have it.
    report = run(script, tmp_path / "out.json", "--side", "eager-and-jax")
    (figures,) = report["figures"]
    ours, theirs = (np.array(figures["checked"][name]) for name in ("jax", "torch eager"))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    assert set(figures["faster_than"]) == {"torch eager", "better"}
    sides = figures["sides"]
    # Per pass, ours computes in the last block what nobody reads; they do not.
    assert sides["torch eager"]["flops"] <= sides["jax"]["flops"]


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train_step", "sample_step"])
def test_the_compiled_side_agrees_too(script, tmp_path):
    pytest.importorskip("torch")
    (figures,) = run(script, tmp_path / "out.json")["figures"]
    ours, theirs = (np.array(figures["checked"][name]) for name in ("jax", "torch compiled"))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    assert figures["faster_than"]["better"]["is"] in ("torch eager", "torch compiled")


def test_compile_time_is_compared_between_depths(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "benchmarks/compile_time.py", "--width", "32", "--layers", "2", "4"),
            *("--rounds", "1", "--latents", "4", "--text", "4", "--out", str(tmp_path / "o.json")),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "o.json").read_text())
    assert report["ratio"]["median"] > 0
    assert set(report["seconds"]) == {"2", "4"}


class Stub:
    def __init__(self, name, values):
        self.name, self.values = name, values

    def check(self):
        return self.values


def test_attention_backends_agree_and_are_compared(tmp_path):
    torch = [] if importlib.util.find_spec("torch") else ["--no-torch"]
    sizes = ["--shape", "2x16x2x8", "--rounds", "1"]
    (figures,) = run("attention", tmp_path / "o.json", *torch, sizes=sizes)["figures"]
    for part in ("forward", "forward_and_backward"):
        assert {"xla", "xla_by_sample"} <= set(figures[part])
        assert figures[part]["xla"]["of_the_first"]["median"] == 1.0


def test_a_side_that_dies_is_named_with_its_exit_code():
    left, right = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=os._exit, args=(7,))
    process.start()
    right.close()
    side = object.__new__(worker.Worker)
    side.name, side._connection, side._process = "torch compiled", left, process
    with pytest.raises(SystemExit, match="torch compiled ended with exit code 7"):
        side.run(1)


def test_sides_that_differ_are_not_timed():
    rounds.check([Stub("jax", [1.0, 2.0]), Stub("torch eager", [1.00005, 2.0])], "float32")
    with pytest.raises(SystemExit, match="torch eager differs from jax by"):
        rounds.check([Stub("jax", [1.0, 2.0]), Stub("torch eager", [1.0003, 2.0])], "float32")


def test_a_ratio_above_one_says_that_ours_is_faster():
    times = {
        "jax": {"seconds": [1.0, 2.0, 1.0]},
        "torch eager": {"seconds": [3.0, 3.0, 3.0]},
        "torch compiled": {"seconds": [2.0, 2.0, 1.5]},
    }
    found = rounds.ratios(times)
    assert found["torch eager"]["median"] == 3.0
    assert found["better"]["is"] == "torch compiled"
    assert (found["better"]["min"], found["better"]["max"]) == (1.0, 2.0)


def test_a_profile_s_loop_is_not_counted_twice():
    def event(name, duration):
        return {
            "ph": "X",
            "pid": 1,
            "tid": 2,
            "name": name,
            "dur": duration,
            "args": {"hlo_op": name},
        }

    found = profile.durations([event("while.3", 9000), event("dot.1", 5000), event("dot.2", 1000)])
    assert found == collections.Counter({"dot": 6.0})
    assert profile.by_category(found) == {"matrix products": 6.0}
