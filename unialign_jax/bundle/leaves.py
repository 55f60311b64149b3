"""Arrays of a component one at a time: as they are stored, and how they are written.

A network keeps its blocks stacked on a leading axis; on disk every layer is an array of its own
(`blocks/layers/image/up/kernel/007`). The largest network can then be written and read without
ever holding more than a few layers.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from unialign_jax.bundle.copying import contiguous, read_ahead
from unialign_jax.models.functional import Params
from unialign_jax.parallel.rules import STACKED

# Written at once, at least: every call of Orbax has a cost of its own.
BATCH = 256 * 2**20
Keys = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array on disk: a parameter, or one layer of it.

    Attributes:
      path: of the parameter, keys joined by "/".
      layer: position on its leading axis; None where nothing is stacked.
      shape, dtype: of this array.
      read: makes the array, in memory of its own.
    """

    path: str
    layer: int | None
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def keys(self) -> Keys:
        """Where it is stored."""
        return stored_keys(self.path, self.layer)

    @property
    def size(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Their bytes."""
        return self.size * self.dtype.itemsize


def stored_keys(path: str, layer: int | None) -> Keys:
    """Where a parameter, or one layer of it, is stored."""
    keys = tuple(path.split("/"))
    return keys if layer is None else (*keys, f"{layer:03}")


def flatten(tree: Mapping[str, Any], prefix: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """(keys, leaf) of nested dicts in the order of `jax.tree.leaves`."""
    for key in sorted(tree):
        value = tree[key]
        if isinstance(value, Mapping):
            yield from flatten(value, (*prefix, key))
        else:
            yield (*prefix, key), value


def unflatten(items: Iterable[tuple[Keys, Any]]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for keys, value in items:
        node = tree
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = value
    return tree


def leaves_of(params: Params) -> list[Leaf]:
    """The arrays that a tree of parameters is stored as."""
    return [
        Leaf(
            "/".join(keys),
            layer,
            tuple(array.shape if layer is None else array.shape[1:]),
            np.dtype(array.dtype),
            lambda array=array, layer=layer: np.asarray(array if layer is None else array[layer]),
        )
        for keys, array in flatten(params)
        for layer in (range(array.shape[0]) if STACKED in keys else (None,))
    ]


def layer_of(keys: Keys) -> tuple[Keys, int | None]:
    """The keys of the parameter that a stored array belongs to, and its layer."""
    stacked = STACKED in keys and keys[-1].isdecimal()
    return (keys[:-1], int(keys[-1])) if stacked else (keys, None)


def stack_shapes(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Shapes of the parameters from those of the stored arrays.

    Raises:
      ValueError: layers that are not numbered from 0, or differ in shape.
    """
    found: dict[Keys, list[tuple[int | None, Any]]] = {}
    for keys, leaf in flatten(stored):
        whole, layer = layer_of(keys)
        found.setdefault(whole, []).append((layer, leaf))
    items = []
    for keys, leaves in found.items():
        shapes, dtypes = ({getattr(l, what) for _, l in leaves} for what in ("shape", "dtype"))
        if leaves[0][0] is None:
            shape = tuple(leaves[0][1].shape)
        elif [layer for layer, _ in leaves] != list(range(len(leaves))) or len(shapes) > 1:
            raise ValueError(f"{'/'.join(keys)}: its layers do not make one array")
        else:
            shape = (len(leaves), *leaves[0][1].shape)
        items.append((keys, jax.ShapeDtypeStruct(shape, np.result_type(*dtypes))))
    return unflatten(items)


def bit_sum(array: np.ndarray) -> int:
    """The sum of an array's bit patterns modulo 2^32, as `damage.fingerprint` takes it."""
    unsigned = np.ascontiguousarray(array).reshape(-1).view(f"uint{8 * array.dtype.itemsize}")
    return int(np.sum(unsigned, dtype=np.uint32))


def fingerprint_of(arrays: Mapping[Keys, np.ndarray]) -> int:
    """What `damage.fingerprint` gives for the tree of these arrays."""
    return _of_sums({keys: bit_sum(np.asarray(array)) for keys, array in arrays.items()})


def _of_sums(sums: Mapping[Keys, int]) -> int:
    return zlib.crc32(np.asarray([sums[keys] for keys in sorted(sums)], "<u4").tobytes())


def write_component(
    folder: Path, leaves: Iterable[Leaf], progress: Callable[[int], None] = lambda done: None
) -> dict[str, Any]:
    """Writes a component, a few arrays in memory at a time.

    Args:
      folder: new, gets an Orbax checkpoint.
      leaves: every array of the component, once.
      progress: called with the bytes of each array once it is read.

    Returns:
      `dtype` (one, or "mixed"), `parameters` and `fingerprint` of the stored arrays.
    """
    sums: dict[Keys, int] = {}
    dtypes: set[str] = set()
    count = pending = 0
    batch: list[tuple[Keys, np.ndarray]] = []

    def save() -> None:
        context = ocp.Context()
        context.array.saving.use_compression = False
        with context:
            ocp.partial.save(str(folder), unflatten(batch))
        batch.clear()

    def read(leaf: Leaf) -> np.ndarray:
        return contiguous(leaf.read()).reshape(leaf.shape)

    for leaf, array in read_ahead(leaves, read, lambda leaf: leaf.bytes):
        sums[leaf.keys] = bit_sum(array)
        dtypes.add(array.dtype.name)
        count += array.size
        batch.append((leaf.keys, array))
        pending += array.nbytes
        progress(array.nbytes)
        if pending >= BATCH:
            save()
            pending = 0
    if batch:
        save()
    ocp.partial.finalize(str(folder))
    return {
        "dtype": dtypes.pop() if len(dtypes) == 1 else "mixed",
        "parameters": count,
        "fingerprint": _of_sums(sums),
    }
