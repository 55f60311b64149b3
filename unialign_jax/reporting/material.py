"""Everything that a report shows, gathered from a run directory and a folder of scores."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import operator
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unialign_jax import __version__
from unialign_jax.bundle.contents import is_bundle, read_description
from unialign_jax.bundle.shipped import find_model
from unialign_jax.config import PACKAGE
from unialign_jax.errors import UserError
from unialign_jax.evaluation.scenes.results import ITEMS_FILE, SCORES_FILE, load_shown
from unialign_jax.models.functional import count_parameters
from unialign_jax.sampling.model import build_model
from unialign_jax.training.metrics import read_metrics
from unialign_jax.training.run_directory import RunDirectory

if TYPE_CHECKING:
    from unialign_jax.evaluation.scenes.results import Shown

OVER_TIME_FILE = "scores_over_time.jsonl"
MOST_GRIDS = 6


@dataclasses.dataclass(frozen=True)
class Making:
    """How a run was made, as far as somebody kept it.

    Attributes:
        config: the name that it was trained from, such as "scenes:demo"; "" if unknown.
        commands: in their order, as one would type them.
        train_seconds: of training, compiling and sample grids included; None if unknown.
    """

    config: str = ""
    commands: tuple[str, ...] = ()
    train_seconds: float | None = None


@dataclasses.dataclass(frozen=True)
class Material:
    """What there is to show.

    Attributes:
        making: how it was made.
        config: the resolved config as nested dicts.
        parameters: of the networks, the text encoder's included.
        step: of the bundle, which has no metrics; 0 of a run.
      metrics: the lines of `metrics.jsonl`.
        reference: lines of a loss curve to lay under the run's; empty if there is none.
        scores: `scores.json`; None where nothing was scored.
        shown: items to look at.
        lines: the line of `items.jsonl` of each (task, id).
        over_time: lines {"step", "seconds", "scores"}.
        grids: sample grids of the training, by step.
        versions: of the programs that made it.
    """

    making: Making
    config: dict[str, Any]
    parameters: int
    step: int
    metrics: list[dict[str, Any]]
    reference: list[dict[str, Any]]
    scores: dict[str, Any] | None
    shown: list[Shown]
    lines: dict[tuple[str, str], dict[str, Any]]
    over_time: list[dict[str, Any]]
    grids: list[tuple[int, Path]]
    versions: dict[str, str]

    @property
    def steps(self) -> int:
        """The last step that was logged, or that of the bundle."""
        return self.metrics[-1]["step"] if self.metrics else self.step

    @property
    def images_per_second(self) -> float | None:
        """The median rate of the run."""
        rates = sorted(line["images_per_second"] for line in self.metrics if _has_rate(line))
        return rates[len(rates) // 2] if rates else None

    @property
    def train_seconds(self) -> float | None:
        """Of training as it was measured, else what the logged rates come to."""
        if self.making.train_seconds is not None:
            return self.making.train_seconds
        if not self.metrics:
            return None
        return seconds_of(self.metrics, self.config["train"]["global_batch"]) or None


def seconds_of(lines: Sequence[dict[str, Any]], batch: int) -> float:
    """What the logged rates of metrics lines come to, without compiling and sample grids."""
    before, seconds = 0, 0.0
    for line in lines:
        if _has_rate(line):
            seconds += (line["step"] - before) * batch / line["images_per_second"]
        before = line["step"]
    return seconds


def gather(
    run: Path, scores: Path | None, making: Making | None = None, reference: Path | None = None
) -> Material:
    """Reads what there is.

    Args:
        run: a run directory, a bundle or the name of one; a bundle has neither curves nor grids.
        scores: what `unialign evaluate scenes` wrote; None shows curves and sample grids alone.
        making: how the run was made.
        reference: a JSON list of metrics lines; None is the one that is kept for the config.

    Raises:
        UserError: no run, no scores, or files that cannot be read.
    """
    run = find_model(run)
    directory, step = RunDirectory(run), 0
    if is_bundle(run):
        description = read_description(run)
        config, step = description["config"], description["made_from"]["step"]
        making = making or Making(description["made_from"]["config"] or "")
        metrics, folders = [], []
    else:
        config = directory.load_config()
        if not directory.metrics.is_file():
            raise UserError(f"{directory.metrics} is missing: has the run logged a step yet?")
        making = making or Making()
        metrics, folders = read_metrics(directory.metrics), [run, run.parent]
    model = build_model(config, None)
    reference = reference or (kept_reference(making.config) if metrics else None)
    return Material(
        making=making,
        config=config,
        parameters=sum(
            count_parameters(part.abstract) for part in (model.transformer, model.text_encoder)
        ),
        step=step,
        metrics=metrics,
        reference=read_reference(reference) if reference else [],
        scores=_read_scores(scores / SCORES_FILE) if scores else None,
        shown=load_shown(scores) if scores else [],
        lines=_read_lines(scores / ITEMS_FILE) if scores else {},
        over_time=_over_time([*([scores] if scores else []), *folders]),
        grids=_grids(directory.samples),
        versions=versions(),
    )


def kept_reference(config: str) -> Path | None:
    """The loss curve that is kept for a config: `scenes_demo_curve.json` for `scenes:demo`."""
    name = f"{config.replace(':', '_')}_curve.json"
    for folder in (PACKAGE / "results", PACKAGE.parent / "docs" / "results"):
        if config and (folder / name).is_file():
            return folder / name
    return None


def read_reference(path: Path) -> list[dict[str, Any]]:
    """A JSON list of metrics lines.

    Raises:
        UserError: it is not there, or not such a list.
    """
    try:
        lines = json.loads(path.read_text("utf-8"))
        if not isinstance(lines, list) or not all("step" in line for line in lines):
            raise ValueError("not a list of lines with a step")
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read as a loss curve ({error}).") from error
    return lines


def versions() -> dict[str, str]:
    """Of this program, Python, the libraries that computed, and the machine."""
    import jax

    found = {"unialign_jax": __version__, "Python": platform.python_version()}
    for name in ("jax", "jaxlib", "flax", "optax", "numpy"):
        found[name] = importlib.metadata.version(name)
    devices = jax.devices()
    found["devices"] = f"{len(devices)} x {devices[0].device_kind}"
    found["processor"] = f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}"
    return found


def _read_scores(path: Path) -> dict[str, Any]:
    try:
        scores = json.loads(path.read_text("utf-8"))
        if not isinstance(scores, dict) or "scores" not in scores:
            raise ValueError("no scores in it")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}). `unialign evaluate scenes` writes it."
        ) from error
    return scores


def _has_rate(line: dict[str, Any]) -> bool:
    return bool(line.get("images_per_second"))


def _read_lines(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    if not path.is_file():
        return {}
    lines = map(json.loads, path.read_text("utf-8").splitlines())
    return {(line["task"], line["id"]): line for line in lines}


def _over_time(folders: Sequence[Path]) -> list[dict[str, Any]]:
    for folder in folders:
        path = folder / OVER_TIME_FILE
        if path.is_file():
            lines = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]
            return sorted(lines, key=operator.itemgetter("step"))
    return []


def _grids(folder: Path) -> list[tuple[int, Path]]:
    """The sample grids by step; of many, some that are evenly spread, with the last."""
    found = sorted((int(path.stem.split("_")[-1]), path) for path in folder.glob("step_*.png"))
    if len(found) > MOST_GRIDS:
        last = len(found) - 1
        found = [found[round(k * last / (MOST_GRIDS - 1))] for k in range(MOST_GRIDS)]
    return found
