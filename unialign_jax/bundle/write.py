"""Writing a model bundle: complete under its name, or not there at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from unialign_jax.bundle.contents import (
    COMPONENTS,
    DESCRIPTION,
    DTYPES,
    FORMAT,
    TOKENIZER,
    file_hashes,
    is_bundle,
    named_arrays,
    needed_config,
    render,
    tree_hash,
)
from unialign_jax.bundle.damage import disk_errors
from unialign_jax.errors import UserError, bullets
from unialign_jax.models.functional import Params, count_parameters

# Orbax's note of where it wrote to; nothing reads it, and a bundle may be anywhere.
_MARKER = "commit_success.txt"


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
) -> dict[str, Any]:
    """Writes a bundle.

    Args:
        destination: its folder.
        config: a resolved config as nested dicts; the parts that sampling needs are kept.
        params: {"transformer", "text_encoder"}, nested dicts of floating-point arrays.
        tokenizer: a `tokenizer.json`.
        switches: settings of the network that change what the weights are, see `models.switches`.
        made_from: JSON values that say where the weights come from.
        dtype: of the stored arrays; one of `DTYPES`.
        name: of the model; the folder's if None.
        overwrite: replaces a bundle of that name.

    Returns:
        The description, as in `unialign.json`.

    Raises:
        UserError: the destination is taken or cannot be written, or a parameter has no finite value
            in that dtype.
    """
    final = Path(destination).expanduser().absolute()
    check_destination(final, overwrite)
    stored = {part: _cast(params[part], dtype, part) for part in COMPONENTS}
    partial = final.with_name(f".{final.name}.partial-{os.getpid()}")
    with disk_errors(final):
        try:
            partial.mkdir(parents=True)
            for part, tree in stored.items():
                ocp.save(str(partial / part), tree)
            for marker in partial.rglob(_MARKER):
                marker.unlink()
            shutil.copyfile(tokenizer, partial / TOKENIZER)
            description = {
                "format": FORMAT,
                "name": name or final.name,
                "config": needed_config(config),
                "switches": dict(switches),
                "made_from": dict(made_from),
                "components": {
                    part: {
                        "folder": part,
                        "dtype": dtype,
                        "parameters": count_parameters(tree),
                        "sha256": tree_hash(tree),
                    }
                    for part, tree in stored.items()
                },
                "files": file_hashes(partial),
            }
            # Last: without it the folder is not a bundle.
            (partial / DESCRIPTION).write_text(render(description), "utf-8")
            _put_in_place(partial, final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return description


def check_destination(final: Path, overwrite: bool) -> None:
    """Refuses to write over what is there, or over anything that is no bundle.

    Raises:
        UserError: it exists; says what to do.
    """
    if not final.exists() or (final.is_dir() and not any(final.iterdir())):
        return
    if not is_bundle(final):
        raise UserError(f"{final}: exists and is no bundle. Name another destination.")
    if not overwrite:
        raise UserError(
            f"{final}: exists. Name another destination, or replace it with --overwrite."
        )


def _put_in_place(partial: Path, final: Path) -> None:
    if not final.exists():
        partial.rename(final)
        return
    aside = final.with_name(f".{final.name}.replaced-{os.getpid()}")
    final.rename(aside)
    partial.rename(final)
    shutil.rmtree(aside)


def _cast(tree: Params, dtype: str, part: str) -> Params:
    if dtype not in DTYPES:
        raise UserError(f"dtype is {dtype!r}: one of {', '.join(DTYPES)}.")
    cast = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)
    lost = [name for name, leaf in named_arrays(cast) if not bool(jnp.isfinite(leaf).all())]
    if lost:
        names = bullets((f"{part}/{name}" for name in lost), 10)
        raise UserError(f"these parameters have no finite value in {dtype}:\n{names}")
    return cast
