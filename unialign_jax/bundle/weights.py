"""The weights of a run, read without its optimiser, and the layout that they are read from.

A checkpoint folder `checkpoints/STEP/` holds one tree per part: `transformer`, `text_encoder`,
their moving averages (`ema_transformer`) and `opt_state`. Its metadata keep a fingerprint of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Sharding, SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from unialign_jax.bundle.damage import (
    DamagedCheckpoint,
    damage,
    fingerprint,
    first_whole,
    quiet_orbax,
)
from unialign_jax.bundle.leaves import Keys, flatten, unflatten
from unialign_jax.errors import UserError

FORMAT = 1
CHECKPOINTS = "checkpoints"
EMA = "ema_"
OPTIMIZER = "opt_state"


def load_params(
    run: str | Path,
    weights: str = "ema",
    step: int | None = None,
    sharding: Sharding | None = None,
    wanted: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], int]:
    """The weights of a run, without its optimiser.

    Args:
        run: the run directory.
        weights: `ema` for the moving average or `raw` for the trained weights. Parts that have no
            average (a frozen text encoder) come from the trained weights.
        step: a saved step; the newest whole checkpoint if None.
        sharding: where to put an array that `wanted` does not have; the first device if None.
        wanted: per part, a tree of `jax.ShapeDtypeStruct` with shardings; arrays of these names
            and shapes are put there.

    Returns:
        `{"transformer": ..., "text_encoder": ...}` and the step.

    Raises:
        UserError: no checkpoints, no such step, damage, or no average in this run.
    """
    if weights not in ("ema", "raw"):
        raise UserError(f"weights are `ema` or `raw`, not `{weights}`.")
    directory = Path(run).expanduser().absolute() / CHECKPOINTS
    sharding = sharding or SingleDeviceSharding(jax.devices()[0])
    quiet_orbax()
    if not directory.is_dir():
        raise UserError(f"{run}: is not a run directory (no checkpoints/).")
    with ocp.training.Checkpointer(str(directory)) as checkpointer:
        steps = [checkpoint.step for checkpoint in checkpointer.checkpoints]
        if step is not None and step not in steps:
            raise UserError(
                f"{directory}: no checkpoint of step {step}; there are {steps or 'none'}."
            )

        def load(step: int) -> dict[str, Any]:
            metadata = read_metadata(checkpointer, step)
            parts = [name for name in metadata.metadata if not name.startswith((EMA, OPTIMIZER))]
            averaged = [name for name in parts if EMA + name in metadata.metadata]
            if weights == "ema" and not averaged:
                raise UserError(f"{run}: keeps no moving average; take the raw weights.")
            sources = {
                name: EMA + name if weights == "ema" and name in averaged else name
                for name in parts
            }
            asked = {
                source: _placed(metadata.metadata[source], (wanted or {}).get(name, {}), sharding)
                for name, source in sources.items()
            }
            loaded = read_trees(checkpointer, step, asked, metadata)
            return {name: loaded[source] for name, source in sources.items()}

        found = first_whole(directory, steps if step is None else [step], lambda s: (load(s), s))
    if found is None:
        raise UserError(f"{directory}: no checkpoint yet; train first.")
    return found[0]


def _placed(saved: Mapping[str, Any], wanted: Mapping[str, Any], otherwise: Sharding) -> Any:
    """What to ask Orbax for: the saved arrays, where they are wanted."""
    places = dict(flatten(wanted))

    def one(keys: Keys, leaf: Any) -> jax.ShapeDtypeStruct:
        place = places.get(keys)
        fits = place is not None and tuple(place.shape) == tuple(leaf.shape)
        sharding = place.sharding if place is not None and fits else otherwise
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return unflatten((keys, one(keys, leaf)) for keys, leaf in flatten(saved))


def read_metadata(checkpointer: Any, step: int) -> Any:
    """Metadata of one checkpoint, complete, or DamagedCheckpoint."""
    with damage():
        metadata = checkpointer.checkpointables_metadata(step)
    custom = metadata.custom_metadata or {}
    if custom.get("format") != FORMAT or custom.get("step") != step:
        raise DamagedCheckpoint("its metadata are missing or incomplete")
    trees = metadata.metadata or {}
    unreadable = [name for name in custom["fingerprints"] if trees.get(name) is None]
    if unreadable:
        raise DamagedCheckpoint(f"{', '.join(sorted(unreadable))}: missing or unreadable")
    return metadata


def read_trees(
    checkpointer: Any, step: int, wanted: Mapping[str, Any], metadata: Any
) -> dict[str, Any]:
    """Reads the wanted trees and checks their fingerprints, or DamagedCheckpoint."""
    with damage():
        trees = checkpointer.load_checkpointables(step, dict(wanted))
    for name, tree in trees.items():
        if fingerprint(tree) != metadata.custom_metadata["fingerprints"][name]:
            raise DamagedCheckpoint(f"{name} is not what was written (fingerprints differ)")
    return trees
