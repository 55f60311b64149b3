"""Writing a model bundle: complete under its name, or not there at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from unialign_jax.bundle.contents import (
    COMPONENTS,
    DESCRIPTION,
    DTYPES,
    FORMAT,
    TOKENIZER,
    file_hashes,
    named_arrays,
    needed_config,
    render,
)
from unialign_jax.bundle.folder import new_folder
from unialign_jax.bundle.leaves import Leaf, leaves_of, write_component
from unialign_jax.bundle.read import Bundle
from unialign_jax.errors import UserError, bullets
from unialign_jax.models.functional import Params

WHAT = "bundle"
# Orbax's note of where it wrote to; nothing reads it, and a bundle may be anywhere.
_MARKER = "commit_success.txt"


class BundleWriter:
    """A bundle that is being written, component by component.

    Attributes:
        folder: a temporary one beside the bundle's.
        final: the bundle's.
        components: what the description will say of each.
    """

    def __init__(self, folder: Path, final: Path):
        self.folder, self.final = folder, final
        self.components: dict[str, dict[str, Any]] = {}

    def add(
        self,
        component: str,
        leaves: Iterable[Leaf],
        progress: Callable[[int], None] = lambda done: None,
    ) -> None:
        """Writes the arrays of a component, a few in memory at a time."""
        written = write_component(self.folder / component, leaves, progress)
        for marker in (self.folder / component).rglob(_MARKER):
            marker.unlink()
        self.components[component] = {"folder": component, **written}

    def take(self, component: str, source: Bundle, *, refer: bool) -> None:
        """Takes a component of another bundle over: a copy, or where it lies.

        Args:
            component: of `source`.
            source: the other bundle.
            refer: names the other bundle, relative to this one, in place of copying.
        """
        home = source.home(component)
        entry = dict(home.components[component])
        lies = home.path.resolve()
        if lies == self.final or lies.is_relative_to(self.final):
            raise UserError(
                f"{self.final}: its component `{component}` would come from the bundle that it "
                "replaces. Name another destination."
            )
        if refer:
            where = Path(os.path.relpath(lies, self.final)).as_posix()
            del entry["folder"]
            self.components[component] = {"bundle": where, **entry}
            return
        shutil.copytree(home.path / entry["folder"], self.folder / component)
        self.components[component] = {**entry, "folder": component}

    def finish(
        self,
        *,
        config: Mapping[str, Any],
        tokenizer: str | os.PathLike[str] | None,
        switches: Mapping[str, Any],
        made_from: Mapping[str, Any],
        name: str | None = None,
    ) -> dict[str, Any]:
        """Writes the rest, the description last, and returns that; arguments as `write_bundle`."""
        if tokenizer is not None:
            shutil.copyfile(tokenizer, self.folder / TOKENIZER)
        description = {
            "format": FORMAT,
            "name": name or self.final.name,
            "config": needed_config(config),
            "switches": dict(switches),
            "made_from": dict(made_from),
            "components": self.components,
            "files": file_hashes(self.folder),
        }
        # Last: without it the folder is not a bundle.
        (self.folder / DESCRIPTION).write_text(render(description), "utf-8")
        return description


@contextlib.contextmanager
def new_bundle(
    destination: str | os.PathLike[str], overwrite: bool = False
) -> Iterator[BundleWriter]:
    """Gives a writer; the bundle gets its name once the block is through.

    Raises:
        UserError: the destination is taken or cannot be written.
    """
    final = Path(destination).expanduser().resolve()
    with new_folder(final, overwrite, DESCRIPTION, WHAT) as folder:
        yield BundleWriter(folder, final)


def write_bundle(
    destination: str | os.PathLike[str],
    *,
    config: Mapping[str, Any],
    params: Params,
    tokenizer: str | os.PathLike[str],
    switches: Mapping[str, Any],
    made_from: Mapping[str, Any],
    dtype: str = "float32",
    name: str | None = None,
    overwrite: bool = False,
    others: Mapping[str, Bundle] | None = None,
    refer: bool = False,
) -> dict[str, Any]:
    """Writes a bundle.

    Args:
        destination: its folder.
        config: a resolved config as nested dicts; the parts that sampling needs are kept.
        params: nested dicts of floating-point arrays, per component.
        tokenizer: a `tokenizer.json`.
        switches: settings of the network that change what the weights are, see `models.switches`.
        made_from: JSON values that say where the weights come from.
        dtype: of the stored arrays; one of `DTYPES`.
        name: of the model; the folder's if None.
        overwrite: replaces a bundle of that name.
        others: components that are taken from other bundles as they are.
        refer: names those bundles in place of copying from them.

    Returns:
        The description, as in `unialign.json`.

    Raises:
        UserError: the destination is taken or cannot be written, or a parameter has no finite value
            in that dtype.
    """
    stored = {part: _cast(params[part], dtype, part) for part in COMPONENTS if part in params}
    with new_bundle(destination, overwrite) as writer:
        for part, tree in stored.items():
            writer.add(part, leaves_of(tree))
        for part, source in (others or {}).items():
            writer.take(part, source, refer=refer)
        return writer.finish(
            config=config, tokenizer=tokenizer, switches=switches, made_from=made_from, name=name
        )


def _cast(tree: Params, dtype: str, part: str) -> Params:
    if dtype not in DTYPES:
        raise UserError(f"dtype is {dtype!r}: one of {', '.join(DTYPES)}.")
    cast = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)
    lost = [name for name, leaf in named_arrays(cast) if not bool(jnp.isfinite(leaf).all())]
    if lost:
        names = bullets((f"{part}/{name}" for name in lost), 10)
        raise UserError(f"these parameters have no finite value in {dtype}:\n{names}")
    return cast
