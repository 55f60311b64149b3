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
from orbax.checkpoint import v1 as ocp

from unialign_jax.bundle.damage import disk_errors, fingerprint, first_whole, quiet_orbax, set_aside
from unialign_jax.bundle.weights import EMA, FORMAT, OPTIMIZER, read_metadata, read_trees
from unialign_jax.errors import UserError, bullets
from unialign_jax.training.run_directory import changes, check_writable
from unialign_jax.training.state import TrainState


class Checkpoints:
    """The checkpoints of one run: saving with retention, restoring past damage.

    Args:
        directory: the run's `checkpoints/`.
        keep: how many of the latest checkpoints stay; 0 keeps all.
    """

    def __init__(self, directory: Path, keep: int = 0):
        self.directory = directory
        quiet_orbax()
        policies = ocp.training.preservation_policies
        preserve: Any = policies.LatestN(keep) if keep else policies.PreserveAll()
        with disk_errors(directory):
            self._checkpointer = ocp.training.Checkpointer(
                str(directory),
                preservation_policy=preserve,
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

    def restore(
        self, abstract: TrainState, config: Any, accept_changes: bool = False
    ) -> TrainState | None:
        """The newest checkpoint that is whole, as `abstract` wants it, or None without any.

        Damaged checkpoints are passed over with a warning and renamed to `STEP.damaged`.

        Args:
            abstract: the state as ShapeDtypeStruct leaves with shardings.
            config: the resolved config; its harmless keys may differ from the saved one.
            accept_changes: any key may differ, as long as the arrays fit.

        Raises:
            UserError: the checkpoint belongs to another config, or all are damaged.
        """
        wanted = _trees(abstract)

        def load(step: int) -> TrainState:
            metadata = read_metadata(self._checkpointer, step)
            where = self.directory / str(step)
            changes(metadata.custom_metadata["config"], config, where, accept_changes)
            _check_structure(metadata.metadata, wanted, where)
            return _rebuild(abstract, read_trees(self._checkpointer, step, wanted, metadata), step)

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
