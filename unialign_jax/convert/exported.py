"""The arrays of one of our components as PyTorch's, one tensor at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from unialign_jax.bundle.leaves import Leaf
from unialign_jax.convert import tables
from unialign_jax.convert.tables import Entry, Tree
from unialign_jax.convert.weight_writer import Planned
from unialign_jax.errors import UserError, bullets

# (path, layer) in the order in which they will be read -> every array of a component.
Arrays = Callable[[Sequence[tuple[str, int | None]]], Iterable[Leaf]]


@dataclasses.dataclass
class Export:
    """Tensors to be written.

    Attributes:
      planned: names, dtypes and shapes, in the order in which they are best read.
      read: name -> array.
    """

    planned: list[Planned]
    read: Callable[[str], np.ndarray]

    def add(self, name: str, array: np.ndarray) -> None:
        """Puts another tensor in front."""
        self.planned.insert(0, Planned(name, array.dtype, tuple(array.shape)))
        before = self.read
        self.read = lambda wanted: array if wanted == name else before(wanted)

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(tensor.size for tensor in self.planned)


def export(
    leaves: Arrays,
    table: Sequence[Entry],
    abstract: Tree,
    what: str,
    dtype: str | None = None,
) -> Export:
    """Prepares the tensors of a component; no array is read yet.

    Args:
      leaves: gives every array of the component.
      table: names of its arrays, ours and theirs.
      abstract: shapes of our parameters.
      what: the component, for messages.
      dtype: of the tensors; None keeps what is stored.

    Raises:
      UserError: arrays that are missing, too many, or of a wrong shape.
    """
    wanted = {(entry.path, entry.layer): entry for entry in table}
    stored = {(leaf.path, leaf.layer): leaf for leaf in leaves(list(wanted))}
    wrong = [f"{_named(key)}: missing" for key in wanted if key not in stored]
    wrong += [f"{_named(key)}: unexpected" for key in stored if key not in wanted]
    planned: list[Planned] = []
    owner: dict[str, tuple[Entry, int]] = {}
    shapes = tables.their_shapes(table, abstract)
    for key, entry in wanted.items():
        leaf = stored.get(key)
        if leaf is None:
            continue
        shape = tables.get_path(abstract, entry.path).shape
        shape = shape if entry.layer is None else shape[1:]
        if tuple(shape) != leaf.shape:
            wrong.append(f"{_named(key)}: is {leaf.shape}, expected {tuple(shape)}")
        for position, name in enumerate(entry.names):
            kind = leaf.dtype if dtype is None else np.dtype(dtype)
            planned.append(Planned(name, kind, tuple(shapes[name])))
            owner[name] = entry, position
    if wrong:
        raise UserError(f"these are not the arrays of a {what}:\n{bullets(wrong, 12)}")
    latest: dict[str, Any] = {}

    def read(name: str) -> np.ndarray:
        entry, position = owner[name]
        # Queries, keys and values are one array of ours and three of theirs.
        if latest.get("entry") is not entry:
            leaf = stored[entry.path, entry.layer]
            latest.update(entry=entry, arrays=entry.to_theirs(leaf.read()))
        array = latest["arrays"][position]
        return array if dtype is None else _cast(array, np.dtype(dtype), name)

    return Export(planned, read)


def _cast(array: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore"):
        cast = array.astype(np.float32).astype(dtype)
    if not np.all(np.isfinite(cast.astype(np.float32))):
        raise UserError(f"{name} has no finite value in {dtype}; choose another --dtype.")
    return cast


def _named(key: tuple[str, int | None]) -> str:
    path, layer = key
    return path if layer is None else f"{path} of layer {layer}"
