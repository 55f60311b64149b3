"""Where every array lives: the one table from logical axes to mesh axes.

A parameter names its dimensions by meaning (`embed`, `mlp`, ...), never by mesh axis. This table
turns the names into shardings, so that changing how the model is spread means changing one line.

A name that maps to a mesh axis shards that dimension; `None` replicates it. Two dimensions of one
array never share a mesh axis (the first one gets it), and a dimension that does not divide by
its axes is replicated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

BATCH_AXES = ("data", "fsdp")

RULES: dict[str, str | tuple[str, ...] | None] = {
    "batch": BATCH_AXES,
    "embed": "fsdp",  # the width of the residual stream, in matrices that read it
    "text_embed": "fsdp",  # the width of the text encoder where the network reads it
    "heads": "tensor",
    "kv": None,  # inside a head
    "mlp": "tensor",
    "modulation": "fsdp",  # rows of all modulation vectors of a block
    "vocab": "tensor",
}

# Rows of the matrices that write the residual stream: over `tensor` where it has several devices,
# else over `fsdp`. Compilers gather and scatter whole rows best, and a shard of columns would be
# padded to the 128 lanes of a TPU.
ROWS = {"heads_in": ("tensor", "fsdp"), "mlp_in": ("tensor", "fsdp")}

# Leaves below this key hold one array per layer, stacked in front of their named axes.
STACKED = "blocks"


def partition_spec(
    axes: tuple[str | None, ...] | None, shape: tuple[int, ...], mesh: Mesh, stacked: bool = False
) -> P:
    """The PartitionSpec of one array.

    Args:
        axes: a logical name (or None) per dimension, or None for a replicated array.
        shape: the array's shape.
        mesh: names and sizes of the mesh axes.
        stacked: the array has a leading layer dimension that `axes` does not name.

    Raises:
        ValueError: a name that is not in the table, or a wrong number of names.
    """
    if axes is None:
        return P()
    names = (None, *axes) if stacked and len(axes) + 1 == len(shape) else tuple(axes)
    if len(names) != len(shape):
        raise ValueError(f"logical axes {names} do not match an array of shape {shape}")
    used: set[str] = set()
    spec: list[str | tuple[str, ...] | None] = []
    for name, size in zip(names, shape, strict=True):
        wanted = _mesh_axes(name, mesh)
        parts = math.prod(mesh.shape[axis] for axis in wanted)
        if not wanted or used & set(wanted) or size % parts or parts == 1:
            spec.append(None)
            continue
        used.update(wanted)
        spec.append(wanted[0] if len(wanted) == 1 else wanted)
    while spec and spec[-1] is None:
        spec.pop()
    return P(*spec)


def _mesh_axes(name: str | None, mesh: Mesh) -> tuple[str, ...]:
    if name in ROWS:
        return next(((axis,) for axis in ROWS[name] if mesh.shape[axis] > 1), ())
    if name is not None and name not in RULES:
        raise ValueError(f"logical axis `{name}` is not in the rules table")
    rule = RULES[name] if name is not None else None
    return (rule,) if isinstance(rule, str) else rule or ()


def shardings(axes_tree: Any, abstract_tree: Any, mesh: Mesh) -> Any:
    """A NamedSharding for every leaf of a parameter tree.

    Args:
        axes_tree: nested dicts with the structure of `abstract_tree`; leaves are tuples of
            logical names or None (replicated).
        abstract_tree: nested dicts of anything with a `shape`.
        mesh: the mesh.

    Returns:
        Nested dicts of NamedSharding, in the structure of `abstract_tree`.
    """

    def walk(axes: Any, node: Any, path: tuple[str, ...]) -> Any:
        if isinstance(node, Mapping):
            # A subtree without axes is replicated as a whole.
            inner = axes if isinstance(axes, Mapping) else dict.fromkeys(node)
            return {key: walk(inner[key], value, (*path, key)) for key, value in node.items()}
        try:
            spec = partition_spec(axes, node.shape, mesh, stacked=STACKED in path)
        except ValueError as error:
            raise ValueError(f"{'/'.join(map(str, path))}: {error}") from error
        return NamedSharding(mesh, spec)

    return walk(axes_tree, abstract_tree, ())


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading dimension split over `data` and `fsdp`."""
    return NamedSharding(mesh, P(BATCH_AXES))


def optimizer_shardings(
    abstract_state: Any, abstract_params: Any, param_shardings: Any, mesh: Mesh
) -> Any:
    """Shardings of an optimiser state: moments like their parameters, the rest replicated.

    Under Auto axes `jax.jit(tx.init)` makes every moment whole on every device, because zeros do
    not inherit a sharding. A leaf of the state belongs to the parameter whose path ends the
    leaf's own path; this holds for any nesting of optax transformations, masked ones included.

    Args:
        abstract_state: `jax.eval_shape(tx.init, abstract_params)`.
        abstract_params: parameters as anything with a `shape`.
        param_shardings: their shardings, in the same structure.
        mesh: the mesh.
    """
    by_path = {
        tuple(_key_name(key) for key in path): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(abstract_params),
            jax.tree.leaves(param_shardings),
            strict=True,
        )
    }

    def sharding_of(path: tuple, leaf: Any) -> NamedSharding:
        names = tuple(_key_name(key) for key in path)
        for start in range(len(names)):
            shape, sharding = by_path.get(names[start:], (None, None))
            if sharding is not None and shape == leaf.shape:
                return sharding
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(sharding_of, abstract_state)


def _key_name(key: Any) -> str:
    """`DictKey('a')` -> `a`, `GetAttrKey('mu')` -> `mu`, `SequenceKey(0)` -> `0`."""
    return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))
