"""Progress on the terminal: a bar with the loss terms, or plain lines without a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text


class _Bar(Progress):
    """A bar with a text below it, which takes as many lines as it needs."""

    below = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self.below:
            yield Text(self.below)


class TrainProgress:
    """Shows where a run stands, and what comes next.

    Args:
        total: the last step.
        start: the step that the run continues from.
        milestones: what happens every so many steps, as {"samples": 500, "checkpoint": 1000}; 0 is
            never.
        visible: False for the processes that stay silent.
        console: where to write; standard error if None, which leaves standard output to results.
    """

    def __init__(
        self,
        total: int,
        start: int = 0,
        *,
        milestones: Mapping[str, int] | None = None,
        visible: bool = True,
        console: Console | None = None,
    ):
        self._console = console or Console(
            file=sys.stderr, soft_wrap=True, highlight=False, quiet=not visible
        )
        self._total, self._start = total, start
        self._milestones = dict(milestones or {})
        self._begin: float | None = None
        self._excluded = 0.0
        self._rates: dict[str, float] = {}
        self._bar: _Bar | None = None
        if self._console.is_terminal:
            self._bar = _Bar(
                TextColumn("training"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
                console=self._console,
                transient=False,
            )
            self._task = self._bar.add_task("compiling", total=total, completed=start)
            self._bar.start()

    def step(self, step: int, values: Mapping[str, float], logged: bool) -> None:
        """Shows a finished step.

        Args:
            step: finished steps.
            values: its loss terms; `images_per_second` and `data_wait` when they are known.
            logged: whether the step is logged; without a terminal only these get a line.
        """
        if self._begin is None:
            # The first report ends the compilation, from where the time left is estimated.
            self._begin, self._start, self._excluded = time.monotonic(), step, 0.0
        for name in ("images_per_second", "data_wait"):
            if name in values:
                self._rates[name] = values[name]
        each = self._seconds_per_step(step)
        left = None if each is None else each * (self._total - step)
        text = describe({**values, **self._rates}, left)
        following = describe_milestone(step, self._milestones, self._total, each)
        if self._bar is not None:
            self._bar.below = text
            self._bar.update(self._task, completed=step, description=following)
        elif logged:
            line = f"step {step}/{self._total}  {text}  {following}".rstrip()
            self._console.print(line, markup=False)

    def exclude(self, seconds: float) -> None:
        """Leaves seconds of compiling, saving or sampling out of the estimate of time left."""
        self._excluded += seconds

    def message(self, text: str) -> None:
        """Prints a line without disturbing the bar."""
        self._console.print(text, markup=False)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.stop()

    def _seconds_per_step(self, step: int) -> float | None:
        if self._begin is None or step <= self._start:
            return None
        elapsed = time.monotonic() - self._begin - self._excluded
        return max(elapsed / (step - self._start), 0.0)


def describe(values: Mapping[str, float], seconds_left: float | None = None) -> str:
    """One line: `loss 0.412  image 0.31  text 5.02  12.3 img/s  wait 2%  left 1:05`."""
    parts = []
    for name, value in values.items():
        if name == "loss" or name.startswith("loss/"):
            parts.append(f"{name.removeprefix('loss/')} {value:.4g}")
    if "images_per_second" in values:
        parts.append(f"{values['images_per_second']:.1f} img/s")
    if "data_wait" in values:
        parts.append(f"wait {values['data_wait']:.0%}")
    if seconds_left is not None:
        parts.append(f"left {duration(seconds_left)}")
    return "  ".join(parts)


def describe_milestone(
    step: int, milestones: Mapping[str, int], total: int, seconds_per_step: float | None = None
) -> str:
    """What happens next: `next: samples and checkpoint at step 800 in 0:42`.

    Args:
        step: finished steps.
        milestones: names, and every how many steps each happens (0: never).
        total: the last step, where the run ends.
        seconds_per_step: for the time until then, where it is known.

    Returns:
        The text, or "" at the end.
    """
    if step >= total:
        return ""
    following = {
        name: (step // every + 1) * every for name, every in milestones.items() if every > 0
    }
    at = min([total, *following.values()])
    names = [name for name, when in following.items() if when == at]
    if at == total:
        names = ["end"]
    text = f"next: {' and '.join(names)} at step {at}"
    if seconds_per_step is not None:
        text += f" in {duration(seconds_per_step * (at - step))}"
    return text


def duration(seconds: float) -> str:
    """`0:42`, `12:05`, `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
