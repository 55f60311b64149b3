"""Every side in a process of its own: thread pools of two frameworks in one disturb each other.

A process builds its side, then answers one request at a time; between requests it sleeps. Spawned,
not forked: JAX's threads do not survive a fork.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from pathlib import Path
from typing import Any

from benchmarks.peer.case import Case

NAMES = {"jax": "jax", "eager": "torch eager", "compiled": "torch compiled"}


def build(variant: str, kind: str, case: Case, platform: str) -> Any:
    """A side of "Training" or "Sampling" in this process; `variant` is a key of `NAMES`."""
    if variant == "jax":
        from benchmarks.peer import jax_side

        return getattr(jax_side, f"Jax{kind}")(case)
    from benchmarks.peer import torch_side

    return getattr(torch_side, f"Torch{kind}")(case, platform, variant == "compiled")


def _serve(connection: Any, *what: Any) -> None:
    side = build(*what)
    connection.send((side.compile_seconds, getattr(side, "flops", None)))
    while (request := connection.recv()) is not None:
        name, argument = request
        if name == "check":
            connection.send(side.check())
        elif name == "run":
            cpu = time.process_time()
            seconds = side.run(argument)
            connection.send((seconds, (time.process_time() - cpu) / argument))
        elif name == "memory":
            connection.send(side.memory)
        elif name == "profile":
            from benchmarks.peer import profile

            connection.send(profile.take(side, argument))


class Worker:
    """The handle of a side that runs elsewhere; a context manager that ends it."""

    def __init__(self, variant: str, kind: str, case: Case, platform: str):
        self.name = NAMES[variant]
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, variant, kind, case, platform))
        self._process.start()
        other.close()
        self.compile_seconds, self.flops = self._answer()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: Any) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._connection.send(None)
        self._process.join()

    def check(self) -> list[float]:
        """What both sides must agree on."""
        return self._ask("check")

    def run(self, steps: int) -> tuple[float, float]:
        """Seconds, and processor seconds of its process, per step."""
        return self._ask("run", steps)

    def memory(self) -> dict[str, float]:
        """GiB."""
        return self._ask("memory")

    def profile(self, folder: Path) -> dict[str, Any]:
        """Traces it; see `profile.take`."""
        return self._ask("profile", folder)

    def _ask(self, name: str, argument: Any = None) -> Any:
        # A side that has ended says so when its answer is read.
        with contextlib.suppress(BrokenPipeError):
            self._connection.send((name, argument))
        return self._answer()

    def _answer(self) -> Any:
        try:
            return self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            code = self._process.exitcode
            why = "out of memory, most likely: leave a side out with --side" if code == -9 else ""
            raise SystemExit(f"{self.name} ended with exit code {code}. {why}".rstrip()) from None
