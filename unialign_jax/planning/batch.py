"""The programs of a training stage, and their batches as shapes: no data are read."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unialign_jax.data.tasks import TRAINING_TASKS, Task
from unialign_jax.errors import UsageError
from unialign_jax.objective import Batch, TextTokens
from unialign_jax.parallel import rules
from unialign_jax.training import state as train_state
from unialign_jax.training.setup import Setup, make_setup


@dataclasses.dataclass(frozen=True, order=True)
class Case:
    """One program of a stage: a task and its number of condition images."""

    task: str
    conditions: int = 0

    def __str__(self) -> str:
        return f"{self.task}({self.conditions})" if self.conditions > 1 else self.task


def cases(config: Mapping[str, Any], wanted: str = "") -> list[Case]:
    """The programs of a config's mixture; `compose` with the most conditions, which is the largest.

    Args:
        config: the resolved config.
        wanted: `edit`, `compose:2` or several with commas; "" for all of the mixture.

    Raises:
        UsageError: no such training task, or a number of conditions that it does not take.
    """
    if not wanted:
        mixture = config["data"].get("mixture") or {task.value: 1.0 for task in TRAINING_TASKS}
        names = [task.value for task in TRAINING_TASKS if mixture.get(task.value, 0) > 0]
        return [Case(name, TRAINING_TASKS[Task(name)].conditions[1]) for name in names]
    found = []
    for part in wanted.split(","):
        name, _, count = part.strip().partition(":")
        if name not in {task.value for task in TRAINING_TASKS}:
            known = ", ".join(task.value for task in TRAINING_TASKS)
            raise UsageError(f"--task {name!r} is no training task; one of {known}.")
        least, most = TRAINING_TASKS[Task(name)].conditions
        conditions = int(count) if count.isdecimal() else most
        if (count and not count.isdecimal()) or not least <= conditions <= most:
            raise UsageError(f"--task {part!r}: {name} takes {least} to {most} condition images.")
        found.append(Case(name, conditions))
    return found


def share(config: Mapping[str, Any], case: Case) -> float:
    """The part of a stage's steps that are of this task."""
    mixture = config["data"].get("mixture") or {task.value: 1.0 for task in TRAINING_TASKS}
    return mixture.get(case.task, 0.0) / sum(mixture.values())


def with_values(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a config with dotted keys set: `{"train.global_batch": 512}`."""
    changed = copy.deepcopy(dict(config))
    for key, value in values.items():
        *path, last = key.split(".")
        section = changed
        for name in path:
            section = section.setdefault(name, {})
        section[last] = value
    return changed


def setup_for(config: Mapping[str, Any], devices: list[Any]) -> Setup:
    """The parts of a run on devices that need not exist, without its tokenizer or data.

    Raises:
        UserError: values that do not fit each other or the devices; names the mesh.
    """
    plain = copy.deepcopy(dict(config))
    # A bundle to start from, and data, are another machine's.
    plain["init_from"] = ""
    plain["data"]["path"] = ""
    setup = make_setup(plain, None, devices)
    length = setup.data.text_length
    # Which ids mean what does not change a program.
    vocabulary = setup.model.config.vocab_size
    tokens = TextTokens(vocabulary - 1, 1, ((1,) * length,))
    return dataclasses.replace(setup, step=dataclasses.replace(setup.step, tokens=tokens))


def abstract_batch(setup: Setup, case: Case) -> Batch:
    """A batch of a program as ShapeDtypeStruct leaves, split over `data` and `fsdp`.

    Images are latents where there is an autoencoder (from a cache of latents), uint8 pixels
    where pixels are diffused. Teacher features are there where the config names a cache of them.
    """
    sharding = rules.batch_sharding(setup.mesh)
    rows, length = setup.train.global_batch, setup.data.text_length
    model = setup.model

    def array(*shape: int, dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=sharding)

    side = setup.data.image_size // model.latents.factor
    latents = model.latents.autoencoder is not None
    kind = jnp.float32 if latents else jnp.uint8
    image = array(side, side, model.config.channels, dtype=kind)
    plan = TRAINING_TASKS[Task(case.task)]
    features = plan.image_branch and bool(setup.data.features)
    grid = (side // model.config.patch_size,) * 2
    pooled = setup.step.objective.image_alignment == "pooled"
    width = model.config.adapter_out
    return Batch(
        target=image,
        instruction_ids=array(length, dtype=jnp.int32),
        caption_ids=array(length, dtype=jnp.int32),
        caption_weight=array(),
        conditions=(image,) * case.conditions,
        label_mask=None if plan.text != "turns" else array(length, dtype=jnp.bool_),
        image_features=(array(width) if pooled else array(*grid, width)) if features else None,
        text_features=array(width) if features else None,
    )


def trainable_part(setup: Setup) -> Any:
    """Shapes of the parameters that are trained."""
    return train_state.trainable(
        setup.abstract.params, train_text_encoder=setup.step.train_text_encoder
    )


def argument_bytes(tree: Any) -> float:
    """Bytes that a device holds of a tree of ShapeDtypeStruct with shardings."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.sharding.shard_shape(leaf.shape)
        total += int(np.prod(shape, dtype=np.int64)) * leaf.dtype.itemsize
    return float(total)
