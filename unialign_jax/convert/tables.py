"""Tables of names: which arrays of a PyTorch model make which array of ours, and back.

Every component has one table, a list of `Entry`. PyTorch keeps linear layers as (out, in) and
convolutions as (out, in, rows, columns); we keep (in, out) and (rows, columns, in, out), and blocks
that are alike stacked on a leading axis. Entries only move numbers, so that a round trip gives the
same bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from unialign_jax.bundle.contents import named_arrays
from unialign_jax.errors import UserError

Tree = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One array of ours, or one layer of it, and the arrays that it is made of.

    Attributes:
      path: our path, with "/" between keys.
      names: theirs; several where we keep one array, as for queries, keys and values.
      to_ours: from the list of their arrays to ours.
      to_theirs: the inverse.
      layer: position on the leading axis of a stacked array; None where nothing is stacked.
    """

    path: str
    names: tuple[str, ...]
    to_ours: Callable[[list[Any]], Any]
    to_theirs: Callable[[Any], list[Any]]
    layer: int | None = None


def same(path: str, name: str) -> Iterator[Entry]:
    """An array that both keep alike."""
    yield Entry(path, (name,), lambda a: a[0], lambda x: [x])


def matrix(path: str, name: str) -> Iterator[Entry]:
    """A transposed matrix."""
    yield Entry(path, (name,), lambda a: a[0].T, lambda x: [x.T])


def linear(path: str, name: str, *, bias: bool = True) -> Iterator[Entry]:
    """A dense layer: `NAME.weight` (out, in) to `PATH/kernel` (in, out)."""
    yield from matrix(f"{path}/kernel", f"{name}.weight")
    if bias:
        yield from same(f"{path}/bias", f"{name}.bias")


def norm(path: str, name: str, *, bias: bool = True) -> Iterator[Entry]:
    """A norm with learned scale and bias."""
    yield from same(f"{path}/scale", f"{name}.weight")
    if bias:
        yield from same(f"{path}/bias", f"{name}.bias")


def convolution(path: str, name: str) -> Iterator[Entry]:
    """A convolution: (out, in, rows, columns) to (rows, columns, in, out)."""
    yield Entry(
        f"{path}/kernel",
        (f"{name}.weight",),
        lambda a: a[0].transpose(2, 3, 1, 0),
        lambda x: [x.transpose(3, 2, 0, 1)],
    )
    yield from same(f"{path}/bias", f"{name}.bias")


def at_layer(entries: Iterable[Entry], layer: int) -> list[Entry]:
    """The entries as one layer of stacked arrays."""
    return [dataclasses.replace(entry, layer=layer) for entry in entries]


def by_path(table: Sequence[Entry]) -> dict[str, list[Entry]]:
    """The entries of each of our arrays, layer by layer."""
    leaves: dict[str, list[Entry]] = {}
    for entry in table:
        leaves.setdefault(entry.path, []).append(entry)
    return leaves


def names_of(table: Sequence[Entry]) -> list[str]:
    """Every one of their names, in the table's order."""
    return [name for entry in table for name in entry.names]


def their_shapes(table: Sequence[Entry], abstract: Tree) -> Shapes:
    """The shape that each of their arrays must have.

    Args:
      table: of the component.
      abstract: the shapes of our parameters, as `models.functional.build` gives them.
    """
    shapes: Shapes = {}
    for entry in table:
        leaf = get_path(abstract, entry.path)
        shape = leaf.shape if entry.layer is None else leaf.shape[1:]
        theirs = jax.eval_shape(entry.to_theirs, jax.ShapeDtypeStruct(shape, leaf.dtype))
        shapes.update(zip(entry.names, (x.shape for x in theirs), strict=True))
    return shapes


def check_shapes(found: Mapping[str, tuple[int, ...]], expected: Shapes, what: str) -> None:
    """Raises UserError unless names and shapes are those expected, listing what is wrong."""
    problems = [f"missing {name}" for name in expected if name not in found]
    problems += [f"unexpected {name}" for name in sorted(set(found) - set(expected))]
    problems += [
        f"{name} is {tuple(found[name])}, expected {tuple(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    if problems:
        shown = "; ".join(problems[:12])
        more = f"; and {len(problems) - 12} more" if len(problems) > 12 else ""
        raise UserError(
            f"the weights of the {what} do not fit its config: {shown}{more}. Give the weights and "
            "the config.json that were saved together"
        )


def from_torch(
    state: Mapping[str, np.ndarray], table: Sequence[Entry], abstract: Tree, what: str
) -> Tree:
    """Our parameters from a state dict.

    Args:
      state: their names and arrays; nothing may be missing or left over.
      table: of the component.
      abstract: the shapes of our parameters.
      what: the component, for messages.

    Returns:
      A nested dict of NumPy arrays with the dtypes of `state`.

    Raises:
      UserError: lists the missing, the unexpected and the mis-shaped names.
    """
    found = {name: np.shape(array) for name, array in state.items()}
    check_shapes(found, their_shapes(table, abstract), what)
    tree: Tree = {}
    for path, entries in by_path(table).items():
        arrays = [e.to_ours([np.asarray(state[name]) for name in e.names]) for e in entries]
        stacked = entries[0].layer is not None
        set_path(tree, path, np.stack(arrays) if stacked else np.ascontiguousarray(arrays[0]))
    return tree


def to_torch(
    params: Tree, table: Sequence[Entry], abstract: Tree, what: str
) -> dict[str, np.ndarray]:
    """The inverse of `from_torch`: their names to contiguous arrays.

    Raises:
      UserError: the tree is not that of the component, or has other shapes.
    """
    paths = {entry.path for entry in table}
    found = dict(named_arrays(params))
    wrong = sorted(set(found) ^ paths)
    if wrong:
        raise UserError(
            f"these parameters are not those of the {what}: {', '.join(wrong[:12])} missing or "
            "unexpected"
        )
    for path in paths:
        shape, expected = np.shape(found[path]), get_path(abstract, path).shape
        if shape != expected:
            raise UserError(
                f"the parameter {path} of the {what} is {shape}, its config needs {expected}; give "
                "the config that was saved with the parameters"
            )
    state = {}
    for path, entries in by_path(table).items():
        leaf = np.asarray(found[path])
        for entry in entries:
            theirs = entry.to_theirs(leaf if entry.layer is None else leaf[entry.layer])
            for name, array in zip(entry.names, theirs, strict=True):
                state[name] = np.ascontiguousarray(array)
    return state


def set_path(tree: Tree, path: str, value: Any) -> None:
    """Sets a leaf of a nested dict; `path` has "/" between keys."""
    *parents, leaf = path.split("/")
    for key in parents:
        tree = tree.setdefault(key, {})
    tree[leaf] = value


def get_path(tree: Tree, path: str) -> Any:
    """Returns a leaf of a nested dict; `path` has "/" between keys."""
    for key in path.split("/"):
        tree = tree[key]
    return tree
