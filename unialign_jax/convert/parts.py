"""A component as it lies in PyTorch weights: checked, and handed over array by array."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import ml_dtypes
import numpy as np

from unialign_jax.bundle.leaves import Leaf
from unialign_jax.convert import tables
from unialign_jax.convert.tables import Entry, Tree
from unialign_jax.errors import UserError, bullets
from unialign_jax.models.functional import Params

# Weights of networks; a bundle holds these and no others.
FLOATS = tuple(np.dtype(d) for d in (np.float32, ml_dtypes.bfloat16, np.float16))


class Readable(Protocol):
    """An array that is read when it is asked for, such as `weight_files.Tensor`."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def read(self) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Made:
    """An array that no file holds as it is.

    Attributes:
      shape, dtype: of the array.
      make: makes it.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    def read(self) -> np.ndarray:
        """The array."""
        return self.make()

    @classmethod
    def of(cls, array: np.ndarray) -> Made:
        """An array that is there already."""
        return cls(tuple(array.shape), array.dtype, lambda: array)


Tensors = Mapping[str, Readable]


@dataclasses.dataclass(frozen=True)
class Part:
    """One component, found in PyTorch weights.

    Attributes:
      name: of the component in a bundle.
      what: for messages.
      path: the file or folder that it was found in.
      config: sizes of the network, a dataclass.
      table: names of its arrays, theirs and ours.
      abstract: shapes of our parameters.
      tensors: their arrays by their names.
      notes: what was done to them, per kind ("renamed", "dropped", "initialised", ...).
      buffer: a table that is stored with the weights and follows from the sizes.
    """

    name: str
    what: str
    path: Path
    config: Any
    table: Sequence[Entry]
    abstract: Tree
    tensors: Tensors
    notes: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    buffer: Readable | None = None

    def problems(self) -> tuple[list[str], list[str], list[str]]:
        """Missing names, unexpected names, and arrays of a wrong shape or dtype."""
        expected = tables.their_shapes(self.table, self.abstract)
        missing = [name for name in expected if name not in self.tensors]
        unexpected = sorted(set(self.tensors) - set(expected))
        wrong = []
        for name, shape in expected.items():
            found = self.tensors.get(name)
            if found is None:
                continue
            if tuple(found.shape) != tuple(shape):
                wrong.append(f"{name} is {tuple(found.shape)}, expected {tuple(shape)}")
            elif found.dtype not in FLOATS:
                wrong.append(f"{name} is {found.dtype}, expected float32, bfloat16 or float16")
        for entry in self.table:
            dtypes = {self.tensors[n].dtype.name for n in entry.names if n in self.tensors}
            if len(dtypes) > 1:
                wrong.append(f"{', '.join(entry.names)} are of {' and '.join(sorted(dtypes))}")
        return missing, unexpected, wrong

    def check(self) -> None:
        """Raises UserError unless names, shapes and dtypes are those of the network."""
        missing, unexpected, wrong = self.problems()
        lines = [f"missing {name}" for name in missing]
        lines += [f"unexpected {name}" for name in unexpected] + wrong
        if lines:
            raise UserError(
                f"{self.path}: its weights are not those of the {self.what} that its config "
                f"describes:\n{bullets(lines, 12)}\nGive the weights and the config.json that were "
                "saved together."
            )

    def leaves(self) -> Iterator[Leaf]:
        """Our arrays, in the order of the table."""
        for entry in self.table:
            abstract = tables.get_path(self.abstract, entry.path)
            shape = abstract.shape if entry.layer is None else abstract.shape[1:]
            dtype = self.tensors[entry.names[0]].dtype
            yield Leaf(
                entry.path, entry.layer, tuple(shape), dtype, lambda entry=entry: self._ours(entry)
            )

    def _ours(self, entry: Entry) -> np.ndarray:
        return entry.to_ours([self.tensors[name].read() for name in entry.names])

    @property
    def size(self) -> int:
        """Bytes of its arrays."""
        return sum(leaf.bytes for leaf in self.leaves())

    def load(self, wanted: Any, dtype: str | None = "float32") -> Params:
        """The parameters on devices, one array at a time.

        Args:
          wanted: anything with a `sharding` per parameter, in the structure of `abstract`.
          dtype: of the result; None keeps that of the weights.
        """
        tree: Tree = {}
        for path, entries in tables.by_path(self.table).items():
            arrays = [self._ours(entry) for entry in entries]
            whole = np.stack(arrays) if entries[0].layer is not None else arrays[0]
            del arrays
            whole = whole if dtype is None else whole.astype(dtype)
            place = tables.get_path(wanted, path).sharding
            tables.set_path(tree, path, jax.device_put(whole, place))
        return tree
