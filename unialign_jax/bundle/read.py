"""Reading a model bundle: checked byte for byte, straight into a sharding, as float32."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Sharding
from orbax.checkpoint import v1 as ocp

from unialign_jax.bundle.contents import REMEDY, check_files, read_description, tree_hash
from unialign_jax.bundle.damage import DamagedCheckpoint, damage, quiet_orbax
from unialign_jax.errors import UserError
from unialign_jax.models.functional import Params


def read_bundle(path: Path, sharding: Sharding) -> tuple[dict[str, Any], Params]:
    """The description and the parameters of a bundle.

    Args:
        path: the bundle's folder.
        sharding: where to put every array, whole on every device.

    Returns:
        `unialign.json` as nested dicts, and {"transformer", "text_encoder"} in float32.

    Raises:
        UserError: of another format, damaged or incomplete; names the file or the component.
    """
    path = path.absolute()
    quiet_orbax()
    description = read_description(path)
    check_files(path, description)
    params = {}
    for name, component in description["components"].items():
        try:
            params[name] = _read_component(path, component, sharding)
        except DamagedCheckpoint as error:
            raise UserError(f"{path}: its component `{name}`: {error}. {REMEDY}") from error
    return description, params


def _read_component(path: Path, component: Mapping[str, Any], sharding: Sharding) -> Params:
    folder = str(path / component["folder"])
    with damage():
        saved: Any = ocp.metadata(folder).metadata
        wanted = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), saved
        )
        tree: Any = ocp.load(folder, wanted)
    # The files were whole: this finds arrays that were decoded to something else.
    if tree_hash(tree) != component["sha256"]:
        raise DamagedCheckpoint("its arrays are not those that were written")
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)
