"""Checkpoints: saved in the background, complete or absent, checked when they are read.

A checkpoint folder `checkpoints/STEP/` holds one tree per part, so that sampling reads the weights
without the optimiser: `transformer`, `text_encoder`, `ema_transformer`, `opt_state`. Trees are
nested dicts of global arrays; reading places every leaf straight into its target sharding. The
metadata keep the config, the data position and a fingerprint of every tree, by which damage that
the file format does not notice is found.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from unialign_jax.errors import UserError
from unialign_jax.training.damage import (
    DamagedCheckpoint,
    damage,
    disk_errors,
    fingerprint,
    first_whole,
    quiet_orbax,
    set_aside,
)
from unialign_jax.training.run_directory import (
    RunDirectory,
    bullets,
    check_writable,
    differences_that_matter,
)
from unialign_jax.training.state import TrainState

FORMAT = 1
EMA = "ema_"
OPTIMIZER = "opt_state"


class Checkpoints:
    """The checkpoints of one run: saving with retention, restoring past damage.

    Args:
        directory: the run's `checkpoints/`.
        keep: how many of the latest checkpoints stay; 0 keeps all.
    """

    def __init__(self, directory: Path, keep: int = 0):
        self.directory = directory
        quiet_orbax()
        preserve = ocp.training.preservation_policies
        with disk_errors(directory):
            self._checkpointer = ocp.training.Checkpointer(
                directory,
                preservation_policy=preserve.LatestN(keep) if keep else preserve.PreserveAll(),
                cleanup_tmp_directories=True,
            )

    def steps(self) -> list[int]:
        """Steps with a committed checkpoint, ascending."""
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    def save(self, state: TrainState, step: int, config: Any, data: Mapping[str, Any]) -> None:
        """Starts saving `state` and returns once the arrays have left the device.

        Args:
            state: every leaf a global array.
            step: finished steps; the checkpoint's name.
            config: the resolved config as nested dicts.
            data: JSON values that say where the data stands.

        Raises:
            UserError: the disk is full or cannot be written, at this or the previous save.
        """
        trees = _trees(state)
        metadata = {
            "format": FORMAT,
            "step": step,
            "config": config,
            "data": dict(data),
            "fingerprints": {name: fingerprint(tree) for name, tree in trees.items()},
        }
        if jax.process_index() == 0:
            check_writable(self.directory)
        with disk_errors(self.directory):
            self._checkpointer.save_checkpointables_async(
                step, trees, force=True, custom_metadata=metadata
            )

    def wait(self) -> None:
        """Blocks until the last save is committed.

        Raises:
            UserError: it could not be written.
        """
        with disk_errors(self.directory):
            self._checkpointer.wait()

    def close(self) -> None:
        """Waits for the last save and releases the threads."""
        with disk_errors(self.directory):
            self._checkpointer.close()

    def restore(self, abstract: TrainState, config: Any) -> TrainState | None:
        """The newest checkpoint that is whole, as `abstract` wants it, or None without any.

        Damaged checkpoints are passed over with a warning and renamed to `STEP.damaged`.

        Args:
            abstract: the state as ShapeDtypeStruct leaves with shardings.
            config: the resolved config; its harmless keys may differ from the saved one.

        Raises:
            UserError: the checkpoint belongs to another config, or all are damaged.
        """
        wanted = _trees(abstract)

        def load(step: int) -> TrainState:
            metadata = _metadata(self._checkpointer, step)
            where = self.directory / str(step)
            differences_that_matter(metadata.custom_metadata["config"], config, where)
            _check_structure(metadata.metadata, wanted, where)
            return _rebuild(abstract, _load(self._checkpointer, step, wanted, metadata), step)

        found = first_whole(self.directory, self.steps(), load)
        if found is None:
            return None
        state, damaged = found
        if damaged and jax.process_index() == 0:
            for step in damaged:
                # Out of the way: its number is needed again, and it must not count as the latest.
                set_aside(self.directory / str(step))
        if damaged:
            self._checkpointer.reload()
        return state


def load_params(
    run: str | Path,
    weights: str = "ema",
    step: int | None = None,
    sharding: Sharding | None = None,
) -> tuple[dict[str, Any], int]:
    """The weights of a run, without its optimiser.

    Args:
        run: the run directory.
        weights: `ema` for the moving average or `raw` for the trained weights. Parts that have no
            average (a frozen text encoder) come from the trained weights.
        step: a saved step; the newest whole checkpoint if None.
        sharding: where to put every array; the first device if None.

    Returns:
        `{"transformer": ..., "text_encoder": ...}` and the step.

    Raises:
        UserError: no checkpoints, no such step, damage, or no average in this run.
    """
    if weights not in ("ema", "raw"):
        raise UserError(f"weights are `ema` or `raw`, not `{weights}`.")
    directory = RunDirectory(run).checkpoints
    sharding = sharding or SingleDeviceSharding(jax.devices()[0])
    quiet_orbax()
    if not directory.is_dir():
        raise UserError(f"{run}: is not a run directory (no checkpoints/).")
    with ocp.training.Checkpointer(directory) as checkpointer:
        steps = [checkpoint.step for checkpoint in checkpointer.checkpoints]
        if step is not None and step not in steps:
            raise UserError(
                f"{directory}: no checkpoint of step {step}; there are {steps or 'none'}."
            )

        def load(step: int) -> dict[str, Any]:
            metadata = _metadata(checkpointer, step)
            parts = [name for name in metadata.metadata if not name.startswith((EMA, OPTIMIZER))]
            averaged = [name for name in parts if EMA + name in metadata.metadata]
            if weights == "ema" and not averaged:
                raise UserError(f"{run}: keeps no moving average; ask for the raw weights.")
            sources = {
                name: EMA + name if weights == "ema" and name in averaged else name
                for name in parts
            }
            wanted = {
                source: jax.tree.map(
                    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
                    metadata.metadata[source],
                )
                for source in sources.values()
            }
            loaded = _load(checkpointer, step, wanted, metadata)
            return {name: loaded[source] for name, source in sources.items()}

        found = first_whole(directory, steps if step is None else [step], lambda s: (load(s), s))
    if found is None:
        raise UserError(f"{directory}: no checkpoint yet; train first.")
    return found[0]


# ---------------------------------------------------------------------- trees


def _trees(state: TrainState) -> dict[str, Any]:
    """The parts of a state by the names of their folders."""
    trees = dict(state.params)
    trees |= {EMA + name: tree for name, tree in (state.ema or {}).items()}
    # Optax's own node types stay out of the files.
    trees[OPTIMIZER] = _nested(_named_leaves(state.opt_state))
    return trees


def _rebuild(abstract: TrainState, trees: dict[str, Any], step: int) -> TrainState:
    """The inverse of `_trees`, with the structure of `abstract`."""
    moments = _named_leaves(trees[OPTIMIZER])
    order = _named_leaves(abstract.opt_state)
    count = np.asarray(step, np.int32)
    return TrainState(
        step=jax.make_array_from_callback((), abstract.step.sharding, lambda _: count),
        params={name: trees[name] for name in abstract.params},
        opt_state=jax.tree.unflatten(
            jax.tree.structure(abstract.opt_state), [moments[name] for name in order]
        ),
        ema=None if abstract.ema is None else {n: trees[EMA + n] for n in abstract.ema},
    )


def _named_leaves(tree: Any) -> dict[tuple[str, ...], Any]:
    """Leaves by path, in the tree's order."""
    return {
        tuple(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _nested(leaves: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = leaf
    return tree


def _check_structure(saved: Mapping[str, Any], wanted: Mapping[str, Any], where: Path) -> None:
    """Raises a UserError that lists every leaf that is missing, left over or of another shape."""
    left, right = _named_leaves(dict(saved)), _named_leaves(dict(wanted))
    lines = []
    for path in sorted(left.keys() | right.keys()):
        name = "/".join(path)
        if path not in right:
            lines.append(f"{name}: in the checkpoint, not in this config")
        elif path not in left:
            lines.append(f"{name}: in this config, not in the checkpoint")
        elif left[path].shape != right[path].shape or left[path].dtype != right[path].dtype:
            before, after = (f"{x[path].dtype}{list(x[path].shape)}" for x in (left, right))
            lines.append(f"{name}: {before} in the checkpoint, {after} in this config")
    if lines:
        raise UserError(
            f"{where}: a checkpoint of another config. Mismatching arrays:\n{bullets(lines)}\n"
            "Use the config that the run was started with, or another --workdir."
        )


# ---------------------------------------------------------------------- reading


def _metadata(checkpointer: Any, step: int) -> Any:
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


def _load(checkpointer: Any, step: int, wanted: Mapping[str, Any], metadata: Any) -> dict[str, Any]:
    """Reads the wanted trees and checks their fingerprints, or DamagedCheckpoint."""
    with damage():
        trees = checkpointer.load_checkpointables(step, dict(wanted))
    for name, tree in trees.items():
        if fingerprint(tree) != metadata.custom_metadata["fingerprints"][name]:
            raise DamagedCheckpoint(f"{name} is not what was written (fingerprints differ)")
    return trees
