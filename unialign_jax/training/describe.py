"""What a config will train, said before anything is allocated or compiled."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import jax

from unialign_jax.data.schedule import Stream
from unialign_jax.training import state as train_state
from unialign_jax.training.setup import Setup

GIB = 2.0**30


def describe(setup: Setup, streams: Sequence[Stream], weights: Sequence[float]) -> str:
    """The resolved config, the parameters, the shapes of a batch, and the memory of the state.

    Args:
        setup: of the run.
        streams: what the data set has; empty when it is not there yet.
        weights: share of the steps of each stream.
    """
    from clu import parameter_overview

    abstract = setup.abstract
    trained = train_state.trainable(
        abstract.params, train_text_encoder=setup.step.train_text_encoder
    )
    counts = {name: _count(tree) for name, tree in abstract.params.items()}
    lines = ["config", json.dumps(setup.config, indent=2), "", "parameters"]
    lines.append(
        parameter_overview.get_parameter_overview(abstract.params, include_stats="sharding")
    )
    for name, count in counts.items():
        lines.append(f"{name}: {count:,}{'' if name in trained else ' (frozen)'}")

    rows, data = setup.train.global_batch, setup.data
    size = data.image_size
    lines += ["", "batch (all devices together)"]
    lines.append(f"target and each condition: uint8 [{rows}, {size}, {size}, 3]")
    lines.append(f"instruction_ids, caption_ids: int32 [{rows}, {data.text_length}]")
    for stream, weight in zip(streams, weights, strict=True):
        share = weight / sum(weights)
        lines.append(
            f"{stream.name}: {stream.size} records, {stream.conditions} condition(s), "
            f"{share:.0%} of the steps"
        )
    if not streams:
        lines.append(f"no data set at {data.path} yet: make it with `unialign prepare`")

    shape = ", ".join(f"{axis} {n}" for axis, n in setup.mesh.shape.items())
    lines += ["", f"memory per device, {setup.mesh.size} device(s) ({shape})"]
    parts = {
        "parameters": abstract.params,
        "gradients": trained,
        "optimiser": abstract.opt_state,
        "moving average": abstract.ema,
    }
    total = 0
    for name, tree in parts.items():
        size = bytes_per_device(tree)
        total += size
        lines.append(f"{name:<15} {readable(size):>12}")
    lines.append(f"{'together':<15} {readable(total):>12}, without activations")
    return "\n".join(lines)


def bytes_per_device(tree: Any) -> int:
    """Bytes that one device holds of a tree of ShapeDtypeStruct leaves with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def readable(size: int) -> str:
    """`1.50 GiB`, or MiB below one GiB."""
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / GIB * 1024:.2f} MiB"


def _count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
