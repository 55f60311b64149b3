"""The demo of scenes: its commands in their order, continued, refused, summed up.

The commands are replaced by ones that leave what the real ones leave.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.reporting.made_up import SCORES, STEPS, TINY, write_run, write_scores
from unialign_jax import cli
from unialign_jax import config as configs
from unialign_jax.commands import demo_stages
from unialign_jax.errors import Interrupted

STEP_SECONDS = 0.5


class Commands:
    """Stands in for the other commands; `fail` maps a command to what it raises or returns."""

    def __init__(self, workdir: Path):
        self.workdir = workdir
        self.called: list[list[str]] = []
        self.fail: dict[str, object] = {}

    def __call__(self, arguments: list[str]) -> int:
        self.called.append(list(arguments))
        name = arguments[0]
        if name in self.fail:
            failure = self.fail.pop(name)
            if isinstance(failure, BaseException):
                raise failure
            return int(failure)  # type: ignore[call-overload]
        scenes = self.workdir / "scenes"
        if name == "prepare":
            scenes.mkdir(exist_ok=True)
            (scenes / "dataset.json").write_text("{}")
        elif name == "cache":
            (scenes / "features" / "scenes").mkdir(parents=True)
            (scenes / "features" / "scenes" / "cache.json").write_text("{}")
        elif name == "train":
            steps = [a.split("=")[1] for a in arguments if a.startswith("--config.train.steps=")]
            write_run(self.workdir, steps=int(steps[0]) if steps else STEPS)
        elif name == "evaluate":
            write_scores(self.workdir)
        return 0

    @property
    def names(self) -> list[str]:
        return [arguments[0] for arguments in self.called]

    def arguments(self, name: str) -> list[str]:
        return next(arguments for arguments in self.called if arguments[0] == name)


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    return tmp_path / "demo"


@pytest.fixture
def commands(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """The commands, a config with teacher features, and a machine of known speed."""

    def load_config(name: str, overrides: list[str]) -> object:
        if not name.startswith("scenes:"):
            return original(name, overrides)
        config = original(str(TINY)).unlock()
        config.data.features = "scenes"
        config.train.steps, config.train.sample_every = STEPS, 20
        config.optimizer.decay_steps, config.optimizer.warmup_steps = STEPS, 10
        config.checkpoint.every_steps = 10
        return configs.apply_overrides(config, overrides)

    original = configs.load_config
    monkeypatch.setattr(configs, "load_config", load_config)
    monkeypatch.setattr("unialign_jax.training.speed.step_seconds", lambda config: STEP_SECONDS)
    monkeypatch.setenv("UNIALIGN_COMPILATION_CACHE", "off")
    found = Commands(workdir)
    monkeypatch.setattr(demo_stages, "call", found)
    return found


def demo(workdir: Path, *options: str) -> int:
    return cli.main(["demo", "--workdir", str(workdir), *options])


def test_the_demo_calls_the_commands_that_it_prints(workdir, commands, capsys):
    assert demo(workdir) == 0
    assert commands.names == ["prepare", "cache", "train", "evaluate", "report"]
    shown = capsys.readouterr().out
    assert f"$ unialign prepare scenes --out {workdir}/scenes --level demo --pixels 16" in shown
    assert f"$ unialign cache --data {workdir}/scenes --teacher scenes" in shown
    assert f"$ unialign train --config scenes:demo --workdir {workdir}/run" in shown
    assert f"--config.data.path={workdir}/scenes" in shown
    assert f"$ unialign evaluate scenes --model {workdir}/run --items 200" in shown
    assert f"$ unialign report --run {workdir}/run --scores {workdir}/scores" in shown
    for arguments in commands.called:
        cli.parse(arguments)
    last = shown.splitlines()[-1]
    assert last.startswith("level demo, 16 pixels, 200 items per task: generate 96 %, caption 87 %")
    assert str(workdir / "report.html") in last


def test_the_time_is_estimated_before_anything_is_done(workdir, commands, capsys):
    assert demo(workdir) == 0
    shown = capsys.readouterr().out
    estimate = shown.index("training: 40 steps, about 20 seconds at this machine's speed")
    assert estimate < shown.index("$ unialign prepare")
    assert "--minutes" in shown


def test_the_summary_has_what_programs_read(workdir, commands):
    assert demo(workdir) == 0
    found = json.loads((workdir / "summary.json").read_text())
    assert found["scores"] == SCORES
    assert found["baselines"]["edit"]["copy"] == 0.01
    assert set(found["seconds"]) == {"total", "train"}
    assert 0 <= found["seconds"]["train"] <= found["seconds"]["total"]
    assert (found["steps"], found["images_per_second"]) == (STEPS, 16.0)
    assert (found["level"], found["pixels"], found["items"]) == ("demo", 16, 200)


def test_minutes_become_steps_and_what_depends_on_them_follows(workdir, commands):
    assert demo(workdir, "--minutes", "2") == 0
    training = commands.arguments("train")
    # 120 seconds at half a second a step.
    assert "--config.train.steps=240" in training
    assert "--config.optimizer.decay_steps=240" in training
    assert "--config.train.sample_every=120" in training
    assert "--config.checkpoint.every_steps=60" in training
    assert not [a for a in training if "warmup" in a]


def test_a_short_run_warms_up_in_a_tenth_of_it(workdir, commands):
    assert demo(workdir, "--steps", "30") == 0
    assert "--config.optimizer.warmup_steps=3" in commands.arguments("train")


def test_seed_and_config_fields_reach_the_commands(workdir, commands):
    assert demo(workdir, "--seed", "7", "--config.train.log_every=2") == 0
    assert commands.arguments("train")[-2:] == ["--config.seed=7", "--config.train.log_every=2"]
    for name in ("prepare", "cache", "evaluate"):
        arguments = commands.arguments(name)
        assert arguments[arguments.index("--seed") + 1] == "7"


def test_the_full_level_is_another_world(workdir, commands):
    assert demo(workdir, "--config", "scenes:full", "--dry-run") == 0
    assert demo(workdir, "--config", "scenes:full") == 0
    arguments = commands.arguments("prepare")
    assert arguments[arguments.index("--level") + 1] == "full"


def test_a_dry_run_prints_the_commands_and_writes_nothing(workdir, commands, capsys):
    assert demo(workdir, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert commands.called == [] and not workdir.exists()
    lines = [line for line in shown.splitlines() if line.startswith("$ unialign ")]
    assert [line.split()[2] for line in lines] == [
        *("prepare", "cache", "train", "evaluate", "report")
    ]
    assert "about 20 seconds" in shown


@pytest.mark.parametrize("stopped", ["prepare", "cache", "train", "evaluate", "report"])
def test_a_stopped_demo_continues_with_the_same_command(workdir, commands, capsys, stopped):
    commands.fail[stopped] = (
        Interrupted("saved") if stopped in ("prepare", "train") else KeyboardInterrupt()
    )
    assert demo(workdir, "--minutes", "2") == 75
    assert not (workdir / "summary.json").exists()
    before = commands.names
    commands.called.clear()
    # A machine that is faster at the second start does not change the number of steps.
    capsys.readouterr()
    assert demo(workdir, "--minutes", "2") == 0
    stages = ["prepare", "cache", "train", "evaluate", "report"]
    assert before == stages[: stages.index(stopped) + 1]
    assert commands.names == stages[stages.index(stopped) :]
    shown = capsys.readouterr().out
    assert shown.count("# done before: ") == stages.index(stopped)
    assert json.loads((workdir / "summary.json").read_text())["steps"] == 240
    assert json.loads((workdir / "demo.json").read_text())["starts"] == 2


def test_the_steps_of_the_first_start_stay(workdir, commands, monkeypatch):
    commands.fail["train"] = Interrupted("saved")
    assert demo(workdir, "--minutes", "2") == 75
    monkeypatch.setattr("unialign_jax.training.speed.step_seconds", lambda config: 0.01)
    assert demo(workdir, "--minutes", "2") == 0
    assert "--config.train.steps=240" in commands.called[-3]


def test_a_finished_demo_is_only_shown_again(workdir, commands, monkeypatch):
    assert demo(workdir) == 0

    def measure(config):
        raise AssertionError("nothing is left to be estimated")

    monkeypatch.setattr("unialign_jax.training.speed.step_seconds", measure)
    commands.called.clear()
    assert demo(workdir) == 0
    assert commands.names == ["report"]


@pytest.mark.parametrize(
    "options", [("--config", "scenes:full"), ("--seed", "1"), ("--minutes", "3"), ("--steps", "9")]
)
def test_another_demo_in_the_same_folder_is_refused(workdir, commands, capsys, options):
    assert demo(workdir) == 0
    commands.called.clear()
    assert demo(workdir, *options) == 1
    error = capsys.readouterr().err
    assert f"holds the demo `unialign demo --workdir {workdir} --config scenes:demo" in error
    assert "another --workdir" in error
    assert commands.called == []


def test_a_run_of_something_else_is_not_touched(workdir, commands, capsys):
    (workdir / "run").mkdir(parents=True)
    assert demo(workdir) == 1
    assert "demo.json" in capsys.readouterr().err
    assert commands.called == []


def test_a_command_that_fails_ends_the_demo_with_its_code(workdir, commands):
    commands.fail["cache"] = 3
    assert demo(workdir) == 3
    assert commands.names == ["prepare", "cache"]


@pytest.mark.parametrize(
    "options", [("--minutes", "0"), ("--minutes", "x"), ("--steps", "0"), ("--seed", "-1")]
)
def test_impossible_numbers_are_wrong_calls(workdir, capsys, options):
    assert demo(workdir, *options) == 2
    assert options[0] in capsys.readouterr().err


def test_numbers_of_steps_are_round_and_close():
    for count in (7, 99, 100, 345.6, 1190, 3456, 12345, 250000):
        found = demo_stages.round_down(count)
        assert 0.95 * count < found + 1 and found <= count
    assert demo_stages.round_down(3456) == 3450
