"""The trainer, from an empty or interrupted run directory to the last step.

Read it from top to bottom: parts, state, input, programs, steps. The data order, the random
numbers of a step and the state after it are functions of (config, step), so a run that was killed
and started again computes the same losses, bit for bit, on the same mesh.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from unialign_jax.bundle.damage import DamageWarning
from unialign_jax.compilation_cache import enable_compilation_cache
from unialign_jax.data import pipeline, prepared
from unialign_jax.data.tokenizer import TextTokenizer
from unialign_jax.errors import Interrupted, UserError
from unialign_jax.training import start as start_from
from unialign_jax.training.checkpoints import Checkpoints
from unialign_jax.training.metrics import LaggedMetrics, MetricsWriter, StepReport, Throughput
from unialign_jax.training.prefetch import Prefetch
from unialign_jax.training.programs import Programs, place_batch
from unialign_jax.training.progress import TrainProgress
from unialign_jax.training.run_directory import RunDirectory
from unialign_jax.training.setup import Setup, make_setup
from unialign_jax.training.signals import StopRequest
from unialign_jax.training.state import TrainState

# (state, finished steps) -> uint8 [H, W, 3]
SampleGrid = Callable[[TrainState, int], np.ndarray]
MakeSampleGrid = Callable[[Setup, TextTokenizer], SampleGrid]


@dataclass(frozen=True)
class TrainResult:
    """How a run ended: its last step, the last report, and the seconds of this start."""

    step: int
    values: dict[str, float]
    seconds: float


def train(
    config: Mapping[str, Any],
    workdir: str | os.PathLike[str],
    make_sample_grid: MakeSampleGrid | None = None,
    *,
    accept_changes: bool = False,
) -> TrainResult:
    """Trains until `train.steps`, from the newest checkpoint in `workdir` if there is one.

    Args:
        config: the resolved config as nested dicts.
        workdir: the run directory.
        make_sample_grid: makes the function that draws a picture every `train.sample_every` steps.
        accept_changes: continue also with a config whose steps compute something else, as long as
            the arrays fit.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the state is saved and the same call continues.
        UserError: bad input, a diverged run, a disk that cannot be written.
    """
    begin = time.monotonic()
    enable_compilation_cache()

    # ---------------------------------------------------------------- parts
    run = RunDirectory(workdir)
    tokenizer_path = prepared.Prepared(config["data"]["path"]).tokenizer_path()
    tokenizer = TextTokenizer.from_file(tokenizer_path)
    config = start_from.completed(config, run.recorded(), tokenizer)
    setup = make_setup(config, tokenizer)
    main = jax.process_index() == 0
    changed = run.create(config, tokenizer_path, accept_changes) if main else []
    total = setup.train.steps
    sample_grid = None
    if make_sample_grid is not None and setup.train.sample_every:
        sample_grid = make_sample_grid(setup, tokenizer)

    # ---------------------------------------------------------------- state
    checkpoints = Checkpoints(run.checkpoints, setup.checkpoint.keep)
    notes = [f"changed since the last start: {difference}" for difference in changed]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DamageWarning)
        state = checkpoints.restore(setup.abstract, setup.config, accept_changes)
    notes += [str(w.message) for w in caught if issubclass(w.category, DamageWarning)]
    if state is None:
        notes.append(f"starting in {run.path}")
        state = setup.init()
    else:
        notes.append(f"continuing in {run.path} after step {int(state.step)}")
    start = int(state.step)

    # ---------------------------------------------------------------- input
    batches = pipeline.make_iterator(
        setup.data,
        seed=setup.step.seed,
        start_step=start,
        global_batch=setup.train.global_batch,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        tokenizer=tokenizer,
        bad_log=run.path / "bad_records.jsonl" if main else None,
    )
    prefetch = Prefetch(batches, lambda item: (str(item[1]), place_batch(item[2], setup)))

    # ---------------------------------------------------------------- programs and reports
    programs = Programs(setup)
    metrics = MetricsWriter(run, start) if main else None
    milestones = {
        "samples": setup.train.sample_every if sample_grid is not None else 0,
        "checkpoint": setup.checkpoint.every_steps,
    }
    progress = TrainProgress(total, start, milestones=milestones, visible=main)
    throughput, lagged = Throughput(), LaggedMetrics()
    values: dict[str, float] = {}
    for note in notes:
        progress.message(note)

    def pause(seconds: float) -> None:
        """Keeps time spent on anything but steps out of the rates."""
        throughput.exclude(seconds)
        progress.exclude(seconds)

    def report(done: StepReport | None) -> None:
        """Counts, logs and shows a finished step."""
        if done is None:
            return
        throughput.images(setup.train.global_batch)
        logged = done.step % setup.train.log_every == 0 or done.step == total
        values.clear()
        values.update(done.values, **(throughput.read() if logged else {}))
        if logged and metrics is not None:
            metrics.write(done.step, {"task": done.task, **values})
        progress.step(done.step, values, logged)

    def save(state: TrainState, step: int) -> None:
        position = {"seed": setup.step.seed, "next_step": step}
        checkpoints.save(state, step, setup.config, position)

    # ---------------------------------------------------------------- steps
    step = saved = start
    failure: UserError | None = None
    with StopRequest() as stop, jax.set_mesh(setup.mesh):
        try:
            while step < total and not requested_anywhere(stop, step, setup.train.log_every):
                try:
                    (task, batch), waited = prefetch.next()
                except UserError as error:
                    # Bad data, good weights: save them before stopping.
                    failure = error
                    break
                throughput.waited(waited)
                program, seconds = programs.get(task, batch)
                if seconds:
                    pause(seconds)
                    progress.message(f"compiled the {task} step in {seconds:.1f} s")
                state, scalars = program(state, batch)
                step += 1
                report(lagged.push(step, task, scalars))

                saves = step % setup.checkpoint.every_steps == 0 and step < total
                samples = is_due(step, setup.train.sample_every)
                if saves or samples:
                    # A step that diverged ends the run here, before it is saved.
                    report(lagged.flush())
                    moment = time.monotonic()
                    if saves:
                        save(state, step)
                        saved = step
                    if samples and sample_grid is not None:
                        picture = draw(sample_grid(state, step), run, step, metrics)
                        progress.message(f"samples at step {step}: {picture}")
                    pause(time.monotonic() - moment)
            report(lagged.flush())
            if step > saved:
                save(state, step)
            checkpoints.wait()
        finally:
            prefetch.close()
            progress.close()
            if metrics is not None:
                metrics.close()
            checkpoints.close()

    if failure is not None:
        raise failure
    if step < total:
        saved_as = f"saved in {run.checkpoints / str(step)}" if step else "nothing to save yet"
        raise Interrupted(
            f"stopped by {stop.name or 'another process'} after step {step} of {total}; "
            f"{saved_as}. The same command continues from there."
        )
    return TrainResult(step, values, time.monotonic() - begin)


def is_due(step: int, every: int) -> bool:
    """Whether something that happens every `every` steps (0: never) happens after this one."""
    return every > 0 and step % every == 0


def requested_anywhere(stop: StopRequest, step: int, every: int) -> bool:
    """Whether any process was asked to stop. Several processes agree every `every` steps."""
    if jax.process_count() == 1:
        return bool(stop)
    if step % every:
        return False
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.array(bool(stop))).any())


def draw(image: np.ndarray, run: RunDirectory, step: int, metrics: MetricsWriter | None) -> Path:
    """Writes a sample grid, uint8 [H, W, 3], to `samples/` and to TensorBoard; returns its path."""
    path = run.samples / f"step_{step:08d}.png"
    if metrics is not None:
        Image.fromarray(image).save(path)
        metrics.image(step, "samples", image)
    return path
