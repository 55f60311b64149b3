"""Progress of a sampling job: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

SECONDS_BETWEEN_LINES = 30.0


class SampleProgress:
    """Shows how many items are made, how fast, and what is left.

    Args:
      total: items to make.
      console: where to write; standard error if None.
    """

    def __init__(self, total: int, console: Console | None = None):
        self._console = console or Console(file=sys.stderr, soft_wrap=True, highlight=False)
        self._total, self._done, self._failed = total, 0, 0
        self._begin = self._said = time.monotonic()
        self._warm: tuple[float, int] | None = None
        self._bar: Progress | None = None
        if self._console.is_terminal and total:
            self._bar = Progress(
                TextColumn("sampling"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
                console=self._console,
            )
            self._task = self._bar.add_task("compiling", total=total)
            self._bar.start()

    def advance(self, done: int, failed: int) -> None:
        """Counts items that are finished, well or not."""
        self._done += done + failed
        self._failed += failed
        now = time.monotonic()
        text = self._describe(now)
        if self._warm is None:
            # The first batch carries the compilation: the rate is counted from its end.
            self._warm = now, self._done
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, description=text)
        elif now - self._said > SECONDS_BETWEEN_LINES:
            self._said = now
            self.message(f"{self._done}/{self._total}  {text}")

    def message(self, text: str) -> None:
        """Prints a line without disturbing the bar."""
        self._console.print(text, markup=False)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.stop()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._begin

    def _describe(self, now: float) -> str:
        start, count = self._warm or (self._begin, 0)
        rate = (self._done - count) / max(now - start, 1e-9)
        parts = [f"{rate:.2f} items/s", f"left {_clock((self._total - self._done) / rate)}"]
        return "  ".join(parts + ([f"{self._failed} failed"] if self._failed else []))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
