"""Reading a model bundle: checked byte for byte, straight into the shardings that are wanted."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from unialign_jax.bundle.contents import REMEDY, check_files, read_description
from unialign_jax.bundle.damage import DamagedCheckpoint, damage, fingerprint, quiet_orbax
from unialign_jax.bundle.leaves import (
    BATCH,
    Keys,
    Leaf,
    fingerprint_of,
    flatten,
    layer_of,
    stack_shapes,
    stored_keys,
    unflatten,
)
from unialign_jax.errors import UserError
from unialign_jax.models.functional import Params


class Bundle:
    """An opened bundle, its files compared with their hashes.

    Args:
        path: its folder.
        opened: bundles that refer to this one, none of which it may refer to.

    Attributes:
        path: absolute, links followed.
        description: `unialign.json` as nested dicts.

    Raises:
        UserError: of another format, damaged or incomplete; names the file or the component.
    """

    def __init__(self, path: Path, opened: frozenset[Path] = frozenset()):
        self.path = path.resolve()
        self._opened = opened | {self.path}
        quiet_orbax()
        self.description = read_description(self.path)
        check_files(self.path, self.description)
        self._others: dict[str, Bundle] = {}

    @property
    def components(self) -> dict[str, dict[str, Any]]:
        """What the description says of each component."""
        return self.description["components"]

    def __contains__(self, component: str) -> bool:
        return component in self.components

    def shapes(self, component: str) -> dict[str, Any]:
        """Shapes and stored dtypes of its parameters, layers stacked, as `jax.ShapeDtypeStruct`."""
        with self._named(component):
            return stack_shapes(self._stored(component))

    def load(self, component: str, wanted: Any, dtype: str | None = "float32") -> Params:
        """The parameters of a component.

        Args:
            component: one of `components`.
            wanted: anything with a `sharding` per parameter, in the structure of `shapes`. A
                process reads only what its devices hold.
            dtype: of the result; None leaves every array as it is stored.
        """
        with self._named(component):
            stored = dict(flatten(self._stored(component)))
        places = {keys: leaf.sharding for keys, leaf in flatten(wanted)}
        # One process holds all: on its host, layers are stacked without compiling anything.
        alone = _alone()
        arrays: Any = self.read_arrays(component, stored if alone else _asked(stored, places))
        with self._named(component):
            # The files were whole: this finds arrays that were decoded to something else.
            sums = fingerprint_of(arrays) if alone else fingerprint(unflatten(arrays.items()))
            if sums != self.components[component]["fingerprint"]:
                raise DamagedCheckpoint("its arrays are not those that were written")
        return _stacked(arrays, places, dtype, np.stack if alone else None)

    def leaves(
        self, component: str, order: Sequence[tuple[str, int | None]] = ()
    ) -> Iterator[Leaf]:
        """Its arrays as they are stored, each read when it is asked for.

        Args:
            component: one of `components`.
            order: (path, layer) in the order in which they will be read: those that come next are
                read together with the one that is asked for, a few at a time.
        """
        with self._named(component):
            stored = dict(flatten(self._stored(component)))
        reader = _Reader(self, component, stored, order)
        for keys, leaf in stored.items():
            path, layer = layer_of(keys)
            yield Leaf(
                "/".join(path),
                layer,
                tuple(leaf.shape),
                np.dtype(leaf.dtype),
                lambda keys=keys: reader.read(keys),
            )

    def home(self, component: str) -> Bundle:
        """The bundle that holds a component: this one, or the one that it refers to."""
        entry = self.components[component]
        if "bundle" not in entry:
            return self
        where = entry["bundle"]
        if (self.path / where).resolve() in self._opened:
            raise UserError(f"{self.path}: its component `{component}` refers back to itself.")
        if where not in self._others:
            self._others[where] = _referred(self, component, where)
        other = self._others[where].components.get(component, {})
        if other.get("fingerprint") != entry["fingerprint"]:
            raise UserError(
                f"{self.path}: its component `{component}` is that of {where}, which is not what "
                "it was. Bring back the bundle that was referred to."
            )
        return self._others[where].home(component)

    def read_arrays(self, component: str, wanted: Mapping[Keys, Any]) -> dict[Keys, Any]:
        """Some of the stored arrays of a component, by their keys.

        Args:
            component: one of `components`.
            wanted: their metadata, for NumPy arrays, or `jax.ShapeDtypeStruct` with shardings.
        """
        context = ocp.Context()
        context.pytree.loading.partial_load = True
        with self._named(component), damage(), context:
            return dict(flatten(_load(str(self._folder(component)), unflatten(wanted.items()))))

    def _folder(self, component: str) -> Path:
        home = self.home(component)
        return home.path / home.components[component]["folder"]

    def _stored(self, component: str) -> Any:
        folder = str(self._folder(component))
        with damage():
            found: Any = ocp.metadata(folder).metadata
            if not isinstance(found, dict):
                raise ValueError("its metadata cannot be read")
            return found

    def _named(self, component: str) -> _Named:
        return _Named(self.path, component)


class _Reader:
    """Arrays of a component in a known order; a call of Orbax for each would take too long."""

    def __init__(
        self,
        bundle: Bundle,
        component: str,
        stored: Mapping[Keys, Any],
        order: Sequence[tuple[str, int | None]],
    ):
        self.bundle, self.component, self.stored = bundle, component, stored
        wanted = [stored_keys(path, layer) for path, layer in order]
        self.order = [keys for keys in wanted if keys in stored]
        self.place = {keys: i for i, keys in enumerate(self.order)}
        self.read_before: dict[Keys, np.ndarray] = {}

    def read(self, keys: Keys) -> np.ndarray:
        """An array, which is then forgotten."""
        if keys not in self.read_before:
            found = self.bundle.read_arrays(self.component, self._next(keys))
            self.read_before = {name: np.asarray(array) for name, array in found.items()}
        return self.read_before.pop(keys)

    def _next(self, keys: Keys) -> dict[Keys, Any]:
        batch, total = {keys: self.stored[keys]}, 0
        for other in self.order[self.place.get(keys, len(self.order)) :]:
            leaf = self.stored[other]
            total += math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
            if total > BATCH:
                break
            batch[other] = leaf
        return batch


class _Named:
    """Turns damage into an error that names the component."""

    def __init__(self, path: Path, component: str):
        self.path, self.component = path, component

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (DamagedCheckpoint, ValueError)):
            raise UserError(
                f"{self.path}: its component `{self.component}`: {error}. {REMEDY}"
            ) from error


def _referred(bundle: Bundle, component: str, where: str) -> Bundle:
    try:
        return Bundle(bundle.path / where, bundle._opened)
    except UserError as error:
        raise UserError(
            f"{bundle.path}: its component `{component}` lies in another bundle, {where}: {error}"
        ) from error


def _alone() -> bool:
    return jax.process_count() == 1


def _load(folder: str, wanted: Any) -> Any:
    with warnings.catch_warnings():
        # Where the arrays lay when they were written is of no use here.
        warnings.filterwarnings("ignore", "Sharding info not provided", UserWarning)
        return ocp.load(folder, wanted)


def _asked(stored: Mapping[Keys, Any], places: Mapping[Keys, Any]) -> dict[Keys, Any]:
    """What to ask Orbax for, so that a process reads only what its devices hold."""

    def one(keys: Keys, leaf: Any) -> jax.ShapeDtypeStruct:
        whole, layer = layer_of(keys)
        place = places[whole] if layer is None else _of_a_layer(places[whole])
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    return {keys: one(keys, leaf) for keys, leaf in stored.items()}


def _of_a_layer(sharding: Any) -> Any:
    """The sharding of one layer of a stacked array, whose leading axis is never split."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))


def _stacked(
    arrays: dict[Keys, Any], places: Mapping[Keys, Any], dtype: str | None, stack: Any
) -> Params:
    """Layers become one array again, parameter by parameter, so that few are held twice.

    Args:
        arrays: as they are stored; emptied.
        places: a sharding per parameter.
        dtype: of the result; None leaves what is stored.
        stack: of NumPy arrays; None where they lie on the devices of several processes.
    """
    names: dict[Keys, list[Keys]] = {}
    for keys in arrays:
        names.setdefault(layer_of(keys)[0], []).append(keys)
    items = []
    for whole, parts in names.items():
        found = [arrays.pop(keys) for keys in parts]
        kind = jnp.result_type(*found) if dtype is None else jnp.dtype(dtype)
        layered = parts[0] != whole
        if stack is None:
            made = _on_devices(found, layered, kind, places[whole])
        else:
            made = stack(found) if layered else found[0]
            made = jax.device_put(np.asarray(made).astype(kind), places[whole])
        items.append((whole, made))
    return unflatten(items)


def _on_devices(found: list[Any], layered: bool, kind: Any, sharding: Any) -> jax.Array:
    def make(*parts: jax.Array) -> jax.Array:
        cast = [part.astype(kind) for part in parts]
        return jnp.stack(cast) if layered else cast[0]

    return jax.jit(make, out_shardings=sharding)(*found)
