"""What a run reports: `metrics.jsonl` for programs, TensorBoard for people.

Values come off the device one step late, so that Python prepares the next step while the last
one computes.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from unialign_jax.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from jaxtyping import UInt8

    from unialign_jax.training.run_directory import RunDirectory


# Order of a line's fields; a term of the loss that lacks its inputs is absent.
ORDER = (
    "loss",
    "loss/image",
    "loss/text",
    "loss/contrastive",
    "loss/align_image",
    "loss/align_text",
    "grad_norm",
    "lr",
)


class MetricsWriter:
    """Writes one line of JSON per logged step, and the same numbers and images to TensorBoard.

    Args:
        run: the run directory.
        last_step: the step that the run continues from (0 at its start). Lines of later steps,
            which will be written again, and a line cut short by a kill are removed.
        tensorboard: whether to write event files.
    """

    def __init__(self, run: RunDirectory, last_step: int, *, tensorboard: bool = True):
        repair_lines(run.metrics, last_step)
        self._lines = run.metrics.open("a", encoding="utf-8")
        self._events = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._events = SummaryWriter(
                str(run.path), purge_step=last_step + 1 if last_step else None, flush_secs=10
            )

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends `{"step": step, **values}`. The line is whole or absent, whatever happens."""
        self._lines.write(json.dumps({"step": step, **values}) + "\n")
        self._lines.flush()
        if self._events is not None:
            for name, value in values.items():
                if isinstance(value, float):
                    self._events.add_scalar(name, value, step)

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "H W 3"]) -> None:
        """Adds a picture to TensorBoard."""
        if self._events is not None:
            self._events.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        """Flushes and closes both files."""
        self._lines.close()
        if self._events is not None:
            self._events.close()


def repair_lines(path: Path, last_step: int) -> None:
    """Keeps the whole lines of a `metrics.jsonl` up to a step; the file is replaced at once."""
    if not path.exists():
        return
    content = path.read_text(encoding="utf-8", errors="replace")
    kept = [line for line in content.splitlines(keepends=True) if _step_of(line) <= last_step]
    repaired = "".join(kept)
    if repaired != content:
        partial = path.with_name(path.name + ".partial")
        partial.write_text(repaired, encoding="utf-8")
        os.replace(partial, path)


def _step_of(line: str) -> float:
    """The line's step; infinity for a line that is cut short."""
    if not line.endswith("\n"):
        return math.inf
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl` as dicts; a last line cut short is left out."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    return [json.loads(line) for line in lines if _step_of(line) != math.inf]


@dataclass(frozen=True)
class StepReport:
    """The numbers of one finished step.

    Attributes:
        step: finished steps, from 1.
        task: what the step trained.
        values: `loss`, `loss/...`, `grad_norm`, `lr`, as Python floats.
    """

    step: int
    task: str
    values: dict[str, float]


class LaggedMetrics:
    """Hands out the metrics of a step once the next one is under way."""

    def __init__(self) -> None:
        self._pending: tuple[int, str, Mapping[str, jax.Array]] | None = None

    def push(self, step: int, task: str, metrics: Mapping[str, jax.Array]) -> StepReport | None:
        """Takes a step's device scalars and returns the report of the one before it, if any."""
        for value in metrics.values():
            value.copy_to_host_async()
        previous = self.flush()
        self._pending = (step, task, metrics)
        return previous

    def flush(self) -> StepReport | None:
        """Waits for the step under way and returns its report, if there is one.

        Raises:
            UserError: the loss or the gradient is not finite.
        """
        if self._pending is None:
            return None
        step, task, metrics = self._pending
        self._pending = None
        names = sorted(metrics, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
        report = StepReport(step, task, {name: float(np.asarray(metrics[name])) for name in names})
        check_finite(report)
        return report


def check_finite(report: StepReport) -> None:
    """Stops a run that has diverged.

    Raises:
        UserError: names the step, its task and every value that is not finite.
    """
    broken = [f"{name}={v}" for name, v in report.values.items() if not math.isfinite(v)]
    if broken:
        rest = [f"{name}={v:.4g}" for name, v in report.values.items() if math.isfinite(v)]
        raise UserError(
            f"step {report.step} ({report.task}): {', '.join(broken)} (while {', '.join(rest)}). "
            "It was not saved: the last checkpoint is good. A lower optimizer.learning_rate or a "
            "smaller optimizer.clip usually helps; --accept-changes continues with it."
        )


class Throughput:
    """Images per second and the share of time spent waiting for data, between two readings.

    Compiling, saving and sampling do not count as training time: `exclude` takes them out.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._start = time.perf_counter()
        self._images = 0
        self._waited = self._excluded = 0.0

    def images(self, count: int) -> None:
        """Counts the images of a finished step."""
        self._images += count

    def waited(self, seconds: float) -> None:
        """Counts seconds spent waiting for a batch."""
        self._waited += seconds

    def exclude(self, seconds: float) -> None:
        """Takes seconds out of the time measured."""
        self._excluded += seconds

    def read(self) -> dict[str, float]:
        """`images_per_second` and `data_wait` (0 to 1) since the last reading."""
        elapsed = max(time.perf_counter() - self._start - self._excluded, 1e-9)
        values = {
            "images_per_second": self._images / elapsed,
            "data_wait": min(self._waited / elapsed, 1.0),
        }
        self._reset()
        return values
