"""Which devices a collective spans: replica groups of XLA's text, and the mesh axes they follow."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import numpy as np

_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_LIST = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? "
    r"\{([^}]*)\}"
)
_PAIRS = re.compile(r"source_target_pairs=\{\{(\d+),(\d+)\}")


def first_group(attributes: str, devices: int) -> list[int]:
    """The first group of devices that a collective works in; all devices where none is named.

    Three forms exist: a list, an iota `[groups,size]<=[shape]T(order)`, and axes of a mesh
    `mesh['x'=4,'y'=16] {'y'}` whose ids may be transposed (`device_ids=`).
    """
    iota = _IOTA.search(attributes)
    if iota:
        groups, size, shape, order = iota.groups()
        ids = _ids(shape, order).reshape(int(groups), int(size))
        return [int(i) for i in ids[0]]
    mesh = _MESH.search(attributes)
    if mesh:
        return _mesh_group(*mesh.groups())
    listed = _LIST.search(attributes)
    if listed and listed[1]:
        return [int(i) for i in listed[1].split(",")]
    pair = _PAIRS.search(attributes)
    if pair:
        return [int(pair[1]), int(pair[2])]
    return list(range(devices))


def _ids(shape: str, order: str | None) -> np.ndarray:
    sizes = [int(size) for size in shape.split(",")]
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return ids.transpose([int(axis) for axis in order.split(",")]) if order else ids


def _mesh_group(axes: str, ids_shape: str | None, order: str | None, used: str) -> list[int]:
    """Devices whose coordinates differ in the used axes only, with the others at 0."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    shape = list(sizes.values())
    if ids_shape:
        ids = _ids(ids_shape, order).reshape(shape)
    else:
        ids = np.arange(math.prod(shape)).reshape(shape)
    index: list = [0] * len(shape)
    # A part of an axis, `'x':(2)4`, is the middle factor 4 of a size 2 * 4 * rest.
    for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", used):
        position = list(sizes).index(name)
        if before:
            after = sizes[name] // (int(before) * int(size))
            index[position] = np.arange(int(size)) * after
        else:
            index[position] = np.arange(sizes[name])
    arrays = [np.atleast_1d(part) for part in index]
    return [int(i) for i in ids[np.ix_(*arrays)].ravel()]


def axes_of(group: list[int], mesh: Mapping[str, int]) -> str:
    """Names of the mesh axes along which the devices of a group differ: `fsdp`, `data+fsdp`.

    The compiler numbers devices in the order of the mesh, its last axis fastest.
    """
    sizes = list(mesh.values())
    coordinates = np.array(np.unravel_index([i % math.prod(sizes) for i in group], sizes))
    moving = [name for name, row in zip(mesh, coordinates, strict=True) if len(set(row)) > 1]
    return "+".join(moving) or "none"
