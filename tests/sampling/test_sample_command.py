"""`unialign sample` from end to end: exit codes, messages, files."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.sampling.conftest import STEP
from unialign_jax import cli


@pytest.fixture
def call(run, tmp_path, capsys):
    """Runs the command with the tiny run, in a folder of its own; (code, stdout, stderr)."""

    def call(*arguments: str, model: str | None = None):
        words = ["sample", "--model", model or str(run), "--out", str(tmp_path / "out")]
        code = cli.main([*words, "--batch", "4", *map(str, arguments)])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return call


@pytest.fixture
def jobs(tmp_path):
    path = tmp_path / "jobs.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"a cat {i}"}) + "\n" for i in range(5)))
    return path


def results(tmp_path: Path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines()]


def test_a_file_of_jobs_is_made_resumed_and_bound_to_its_settings(call, jobs, tmp_path):
    code, _, error = call("--task", "generate", "--input", jobs, "--limit", 3, "--grid")
    assert code == 0, error
    assert "3 made" in error
    assert [line["status"] for line in results(tmp_path)] == ["ok"] * 3
    assert (tmp_path / "out/grid.png").is_file()
    assert json.loads((tmp_path / "out/job.json").read_text())["checkpoint_step"] == STEP

    code, _, error = call("--task", "generate", "--input", jobs)
    assert code == 0
    assert "5 made, 3 of them before" in error
    assert len(results(tmp_path)) == 5

    code, _, error = call("--task", "generate", "--input", jobs, "--steps", 9)
    assert code == 1
    assert "steps was None and is 9" in error


def test_some_failed_items_exit_with_three_and_say_why(call, jobs, tmp_path):
    with jobs.open("a") as file:
        file.write('{"prmpt": "typo"}\n')
    code, _, error = call("--task", "generate", "--input", jobs, "--limit", 6)
    assert code == 3
    assert "jobs.jsonl:6: no `prompt`" in error
    assert "5 made, 1 failed" in error
    assert [line["status"] for line in results(tmp_path)] == ["ok"] * 5 + ["failed"]


def test_quick_calls_print_what_they_made(call, photos, tmp_path):
    code, out, error = call("--prompt", "A red ball", "--prompt", "a cat", "--seed", 5)
    assert code == 0, error
    files = [Path(line) for line in out.splitlines()]
    assert [file.name[:5] for file in files] == ["a-red", "a-cat"]
    assert all(Image.open(file).size == (16, 16) for file in files)

    photos[0].save(tmp_path / "photo.png")
    code, out, _ = call("--image", tmp_path / "photo.png")
    assert code == 0
    first, *others = results(tmp_path)
    assert first["task"] == "caption"
    assert first["text"] == out.strip()
    assert [line["task"] for line in others] == ["generate"] * 2


def test_a_dry_run_writes_nothing_and_loads_nothing(call, jobs, tmp_path):
    code, out, _ = call("--task", "generate", "--input", jobs, "--dry-run", model="nowhere")
    assert code == 0
    assert "5 items, 0 of them cannot be made" in out
    code, out, _ = call("--image", "no.png", "--dry-run", model="nowhere")
    assert code == 3
    assert "no image file 'no.png'" in out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ([], "give --input, --prompt or --image"),
        (["--input", "jobs.jsonl"], "--input needs --task"),
        (["--input", "j", "--task", "generate", "--prompt", "x"], "--prompt belongs to a call"),
        (["--prompt", "x", "--instruction", "y"], "do not go together"),
        (["--prompt", "x", "--image", "a.png"], "generate takes no --image"),
        (["--instruction", "x"], "edit takes an --image"),
        (["--image", "a", "--instruction", "x", "--task", "answer"], "answer takes --question"),
        (["--image", "a", "--instruction", "x", "--task", "caption"], "an --image alone"),
        (["--image", "a.png", "--height", "32"], "--height and --width are for generate"),
        (["--prompt", "x", "--shard", "4/4"], "--shard"),
        (["--prompt", "x", "--steps", "0"], "--steps"),
        (["--prompt", "x", "--seed", "-1"], "--seed"),
        (["--prompt", "x", "--task", "draw"], "--task"),
        (["--prompt", "x", "--stpes", "3"], "'--steps'"),
    ],
)
def test_a_wrong_call_exits_with_two_and_says_how(call, tmp_path, arguments, what):
    code, _, error = call(*arguments)
    assert code == 2
    assert what in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "model", "what"),
    [
        (["--prompt", "x"], "nowhere", "run directory"),
        (["--task", "generate", "--input", "no.jsonl"], None, "no.jsonl: cannot be read"),
    ],
)
def test_what_cannot_be_read_exits_with_one(call, words, model, what):
    code, _, error = call(*words, model=model)
    assert code == 1
    assert what in error
    assert "Traceback" not in error


def test_an_output_folder_that_is_a_file_exits_with_one(call, jobs, tmp_path):
    (tmp_path / "out").write_text("in the way")
    code, _, error = call("--task", "generate", "--input", jobs)
    assert code == 1
    assert str(tmp_path / "out") in error


def test_ctrl_c_finishes_the_batch_exits_with_75_and_the_same_call_goes_on(call, run, tmp_path):
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text("".join(json.dumps({"prompt": f"a cat {i}"}) + "\n" for i in range(4000)))
    command = [sys.executable, "-m", "unialign_jax", "sample", "--model", str(run)]
    command += ["--task", "generate", "--input", str(jobs), "--out", str(tmp_path / "out")]
    found = tmp_path / "out/results.jsonl"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(
        [*command, "--batch", "2"], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        deadline = time.monotonic() + 120
        while not (found.exists() and found.read_text().count("\n") > 2):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 75, error
    assert "The same command makes the rest" in error
    assert "Traceback" not in error
    done = len(results(tmp_path))
    assert 2 < done < 4000
    assert done % 2 == 0, "the batch was finished"
    words = ["--task", "generate", "--input", jobs, "--batch", 2, "--limit", done + 2]
    code, _, error = call(*words)
    assert code == 0, error
    assert f"{done} of them before" in error


PROCESS = """
import os, sys
import jax
jax.distributed.initialize(f"localhost:{sys.argv[1]}", 2, int(sys.argv[2]))
from unialign_jax import cli
sys.exit(cli.main(["sample", "--batch", "2", *sys.argv[3:]]))
"""


@pytest.mark.slow
def test_processes_that_know_of_each_other_share_the_items(run, jobs, tmp_path):
    words = ["--model", run, "--task", "generate", "--input", jobs, "--out", tmp_path / "out"]

    def both() -> list[str]:
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", PROCESS, str(port), str(index), *map(str, words)],
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "JAX_PLATFORMS": "cpu"},
            )
            for index in range(2)
        ]
        errors = [process.communicate(timeout=200)[1] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], errors
        return errors

    first, second = both()
    assert "3 made" in first
    assert "2 made" in second
    assert [line["id"] for line in results(tmp_path)] == [f"{n:06d}" for n in range(1, 6)]
    # Only one of them has something to make: the checkpoint is read by both all the same.
    (tmp_path / "out/images/000002.png").unlink()
    both()
    assert (tmp_path / "out/images/000002.png").is_file()
