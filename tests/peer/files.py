"""Writing a directory of goldens: arrays, JSON and the inventory of all files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file


def write(directory: Path, files: dict[str, Any]) -> None:
    """Writes the files and their inventory."""
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".npz"):
            np.savez_compressed(path, **content)
        elif name.endswith(".safetensors"):
            save_file({k: np.ascontiguousarray(v) for k, v in content.items()}, path)
        else:
            path.write_text(json.dumps(content, indent=1))
    write_inventory(directory)


_SAFETENSORS_NAMES = {"float32": "F32", "int64": "I64"}


def write_inventory(directory: Path) -> None:
    """Lists every file with size, SHA-256 and, where it holds arrays, their types and shapes."""
    inventory = {}
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        name, data = path.relative_to(directory).as_posix(), path.read_bytes()
        if name == "inventory.json":
            continue
        arrays = None
        if path.suffix == ".npz":
            with np.load(path) as file:
                arrays = {k: [str(file[k].dtype), list(file[k].shape)] for k in file.files}
        elif path.suffix == ".safetensors":
            arrays = {
                k: [_SAFETENSORS_NAMES[str(v.dtype)], list(v.shape)]
                for k, v in load_file(path).items()
            }
        digest = hashlib.sha256(data).hexdigest()
        inventory[name] = {"bytes": len(data), "sha256": digest, "arrays": arrays}
    (directory / "inventory.json").write_text(json.dumps(inventory, indent=1))
