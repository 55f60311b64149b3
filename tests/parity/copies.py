"""Small copies of the stored goldens, to be damaged."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.parity.checks import GOLDENS

Arrays = dict[str, np.ndarray]


def read_inventory(root: Path) -> dict[str, Any]:
    """The entries of a directory."""
    return json.loads((root / "inventory.json").read_text())


def copy(root: Path, *beginnings: str) -> Path:
    """Copies the files whose names begin with one of those given, and lists them."""
    inventory = read_inventory(GOLDENS)
    chosen = {name: entry for name, entry in inventory.items() if name.startswith(beginnings)}
    for name in chosen:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(GOLDENS / name, root / name)
    (root / "inventory.json").write_text(json.dumps(chosen))
    return root


def enlist(root: Path, name: str) -> None:
    """Lists a file as it is, so that nothing but its content tells that it was changed."""
    path, inventory, arrays = root / name, read_inventory(root), None
    if name.endswith(".npz"):
        with np.load(path) as file:
            arrays = {key: [str(file[key].dtype), list(file[key].shape)] for key in file.files}
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    inventory[name] = {"bytes": len(data), "sha256": digest, "arrays": arrays}
    (root / "inventory.json").write_text(json.dumps(inventory))


def change(root: Path, name: str, edit: Callable[[Arrays], None]) -> None:
    """Edits the arrays of an .npz file and lists it anew."""
    with np.load(root / name) as file:
        arrays = {key: file[key] for key in file.files}
    edit(arrays)
    np.savez(root / name, **arrays)
    enlist(root, name)


def raised(key: str, by: float) -> Callable[[Arrays], None]:
    """An edit that adds a share of the peak to one value."""

    def edit(arrays: Arrays) -> None:
        array = arrays[key].copy()
        array.reshape(-1)[array.size // 2] += by * np.max(np.abs(array))
        arrays[key] = array

    return edit
