"""The compiled steps: one program per task and number of condition images."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from unialign_jax.objective import Batch
from unialign_jax.parallel import rules
from unialign_jax.training.setup import Setup
from unialign_jax.training.state import TrainState
from unialign_jax.training.step import make_train_step

Program = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]


class Programs:
    """Compiles the step of a task when its first batch arrives, and keeps it."""

    def __init__(self, setup: Setup):
        self._setup = setup
        self._compiled: dict[tuple[str, int], Program] = {}

    def get(self, task: str, batch: Batch) -> tuple[Program, float]:
        """The program for a batch and the seconds spent compiling it (0 if it was there).

        It donates the state: the one given to it must not be used again.
        """
        key = task, len(batch.conditions)
        if key in self._compiled:
            return self._compiled[key], 0.0
        begin = time.monotonic()
        self._compiled[key] = lower(self._setup, task, batch).compile()
        return self._compiled[key], time.monotonic() - begin


def lower(setup: Setup, task: str, batch: Any) -> Any:
    """The lowered step of a task for a batch of arrays or of ShapeDtypeStruct with shardings."""
    return trace(setup, task, batch).lower()


def trace(setup: Setup, task: str, batch: Any) -> Any:
    """The traced step of a task: its `jaxpr` is what will be computed; it can be lowered."""
    step = make_train_step(
        setup.model.transformer,
        setup.model.text_encoder,
        setup.tx,
        setup.schedule,
        setup.step,
        task=task,
        spread=setup.spread,
    )
    # The same shardings go in and come out, else the second step would be compiled again.
    outputs = setup.shardings, rules.replicated(setup.mesh)
    with jax.set_mesh(setup.mesh):
        return jax.jit(step, donate_argnums=0, out_shardings=outputs).trace(setup.abstract, batch)


def place_batch(batch: Mapping[str, Any], setup: Setup) -> Batch:
    """A process's rows of the global batch as global arrays split over `data` and `fsdp`."""
    sharding = rules.batch_sharding(setup.mesh)
    names = {field.name for field in dataclasses.fields(Batch)}
    rows = Batch(**{name: value for name, value in batch.items() if name in names})
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), rows)
