"""Stopping on request: the step is finished, the state saved, and the exit code says so."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any


class StopRequest:
    """Within its `with` block, Ctrl-C and SIGTERM set a flag instead of raising.

    A second signal of the same kind ends the process at once, also inside a compilation.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in self.SIGNALS:
            self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        return self.name is not None

    def _request(self, number: int, _: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        signal.signal(number, signal.SIG_DFL)
        # Plain write: the handler may run in the middle of another print.
        text = f"\n{self.name}: finishing this step and saving; once more stops at once.\n"
        os.write(2, text.encode())
