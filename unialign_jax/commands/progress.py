"""A progress bar that commands share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

# on_start(total, done so far), advance(count)
Bar = tuple[Callable[..., None], Callable[[int], None]]


@contextlib.contextmanager
def progress_bar(text: str) -> Iterator[Bar]:
    """A bar with the time left on standard error; nothing where that is not a terminal.

    Args:
        text: what is counted.

    Yields:
        `on_start(total, done=0)`, to be called once, and `advance(count)`.
    """
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    bar = progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task(text, total=None)

        def on_start(total: int, done: int = 0) -> None:
            bar.update(task, total=total, completed=done)

        yield on_start, lambda count: bar.advance(task, count)
