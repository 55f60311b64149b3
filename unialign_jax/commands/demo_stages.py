"""What the demos share: one call after the other, each once, and how long training will take."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unialign_jax.errors import UserError

if TYPE_CHECKING:
    from unialign_jax.reporting.diary import Diary

LEAST_STEPS = 20
# Of a run that is shortened or lengthened, these keep their share of it; 0 stays 0.
IN_PROPORTION = (
    ("optimizer", "decay_steps"),
    ("data", "first_steps"),
    ("objective", "align_stop_step"),
    ("train", "sample_every"),
    ("checkpoint", "every_steps"),
)


@dataclasses.dataclass(frozen=True)
class Stage:
    """One command of a demo.

    Attributes:
        name: in the diary.
        arguments: of `unialign`, as one would type them.
        done: whether its output is there, so that it need not be called again.
    """

    name: str
    arguments: tuple[str, ...]
    done: Callable[[], bool] = lambda: False

    @property
    def command(self) -> str:
        """As one would type it."""
        return f"unialign {shlex.join(self.arguments)}"


def run_stage(stage: Stage, workdir: Path, diary: Diary) -> int:
    """Calls a command and shows it, or says that it was called before; returns its exit code."""
    diary.remember(stage.command)
    diary.save(workdir)
    if stage.done():
        print(f"# done before: {stage.command}", flush=True)
        return 0
    print(f"$ {stage.command}", flush=True)
    begin = time.monotonic()
    try:
        return call(stage.arguments)
    finally:
        diary.spend(stage.name, time.monotonic() - begin)
        diary.save(workdir)


def call(arguments: Sequence[str]) -> int:
    """Runs another command of this program and returns its exit code."""
    command = importlib.import_module(f"unialign_jax.commands.{arguments[0]}")
    parser = argparse.ArgumentParser(prog=f"unialign {arguments[0]}", allow_abbrev=False)
    command.add_arguments(parser)
    args, extra = parser.parse_known_args(list(arguments[1:]))
    return int(command.run(args, extra) or 0)


def open_diary(workdir: Path, options: Mapping[str, Any]) -> Diary:
    """The diary of a demo in a directory, to be continued or begun; nothing is written.

    Raises:
        UserError: the directory holds a demo of other options, or a run of something else.
    """
    from unialign_jax.reporting import diary as diaries

    diary = diaries.Diary.load(workdir)
    if diary is None:
        if (workdir / "run").exists():
            raise UserError(
                f"{workdir / 'run'} is there, but no {diaries.FILE} that says which demo it is of: "
                "choose another --workdir, or remove it"
            )
        return diaries.Diary(options=dict(options))
    if diary.options != dict(options):
        raise UserError(
            f"{workdir} holds the demo `{as_typed(diary.options, workdir)}`: the same command "
            "continues it; choose another --workdir for other options"
        )
    return diary


def as_typed(options: Mapping[str, Any], workdir: Path) -> str:
    """The call of a demo with some options."""
    parts = ["unialign", "demo", "--workdir", str(workdir)]
    for name, value in options.items():
        if name != "extra" and value is not None:
            parts += [f"--{name}", str(value)]
    return shlex.join([*parts, *options.get("extra", ())])


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long the training is.

    Attributes:
        steps: of training.
        step_seconds: of one step by a measurement on this machine; None where it was not needed.
        reached: the last step that was saved.
    """

    steps: int
    step_seconds: float | None = None
    reached: int = 0

    def __str__(self) -> str:
        from unialign_jax.reporting.words import minutes_in_words

        if self.step_seconds is None:
            return f"trained: {self.steps:,} steps"
        left = minutes_in_words((self.steps - self.reached) * self.step_seconds)
        since = f", {self.reached:,} of them done" if self.reached else ""
        return (
            f"training: {self.steps:,} steps{since}, about {left} at this machine's speed "
            f"({1000 * self.step_seconds:.0f} ms a step; compiling and samples come on top). "
            "--minutes N trades time for quality."
        )


def make_plan(
    config: Mapping[str, Any], run: Path, *, chosen: int, steps: int | None, minutes: float | None
) -> Plan:
    """Chooses the number of steps, and measures what they will take unless they are done.

    Args:
        config: resolved, with the steps that it would train by itself.
        run: the run directory.
        chosen: steps that were chosen at an earlier start; 0 for none.
        steps: wanted, or None.
        minutes: of training wanted, or None.
    """
    reached = last_checkpoint(run)
    steps = chosen or steps or (None if minutes else config["train"]["steps"])
    if steps and reached >= steps:
        return Plan(steps, reached=reached)
    # JAX is slow to import, and none of it is needed where all is done.
    from unialign_jax.compilation_cache import enable_compilation_cache
    from unialign_jax.training.speed import step_seconds

    enable_compilation_cache()
    each = step_seconds(config)
    if steps is None:
        assert minutes is not None
        steps = max(LEAST_STEPS, round_down(60 * minutes / each))
    return Plan(steps, each, reached)


def round_down(count: float) -> int:
    """A round whole number, at most 5 % below `count`."""
    coarse = max(1, 5 * 10 ** (len(str(int(count))) - 3)) if count >= 100 else 1
    return int(count) // coarse * coarse


def last_checkpoint(run: Path) -> int:
    """The last step that a run has saved; 0 without any."""
    names = [path.name for path in (run / "checkpoints").glob("*")]
    return max([int(name) for name in names if name.isdecimal()], default=0)


def schedule_overrides(config: Mapping[str, Any], steps: int) -> list[str]:
    """Arguments of `train` for another number of steps: what depends on it follows."""
    before = config["train"]["steps"]
    if steps == before:
        return []
    overrides = [f"--config.train.steps={steps}"]
    for section, name in IN_PROPORTION:
        value = config.get(section, {}).get(name, 0)
        if value:
            overrides.append(f"--config.{section}.{name}={max(1, round(value * steps / before))}")
    warmup = config.get("optimizer", {}).get("warmup_steps", 0)
    if warmup > steps // 10:
        overrides.append(f"--config.optimizer.warmup_steps={steps // 10}")
    return overrides
