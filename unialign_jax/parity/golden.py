"""A directory of goldens: reading with an account of what was used, comparing with tolerances.

Every array of a covered file must be read as an input or compared; `GoldenDirectory.unchecked`
lists those that were neither, so that nothing is passed over in silence.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from unialign_jax.errors import UserError

# Stand-ins for minus infinity in recorded log-probabilities; compared apart from real values.
SENTINEL = 1e5
LOOSE = 5e-5
STRICT = 1e-5
LARGE_TIMESTEP = 100.0
# How far the reference's own float32 is from its float64.
NO_RESULTS = "noise_floor.json"


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
      case: GROUP/NAME.
      tensor: name of the array or value.
      max_abs: largest absolute difference.
      max_rel: the same relative to the reference's peak (gradients: to its norm).
      tolerance: that `max_rel` must not exceed; 0 for exact equality.
      ok: whether it holds.
      note: what is wrong, where a number does not say it.
    """

    case: str
    tensor: str
    max_abs: float
    max_rel: float
    tolerance: float
    ok: bool
    note: str = ""


def tolerance_for(timesteps: Any) -> float:
    """5e-5 where a timestep above 100 goes in (float32 sinusoids differ there), else 1e-5."""
    return LOOSE if np.max(np.asarray(timesteps), initial=0.0) > LARGE_TIMESTEP else STRICT


class GoldenDirectory:
    """Access to the files that an inventory lists, with the rows of all comparisons."""

    def __init__(self, root: Path):
        self.root = root
        path = root / "inventory.json"
        if not path.is_file():
            raise UserError(f"{root} has no inventory.json; give a directory of recorded numbers")
        self.inventory: dict[str, Any] = read_json(path)
        entries = self.inventory.values() if isinstance(self.inventory, dict) else [None]
        if not all(isinstance(entry, dict) for entry in entries):
            raise UserError(f"{path} is no inventory: an object of files with their arrays")
        self.rows: list[Row] = []
        self._cases: dict[str, GoldenFile] = {}
        self._documents: set[str] = set()

    def groups(self) -> list[str]:
        """The top-level folders that the inventory lists."""
        return sorted({name.split("/")[0] for name in self.inventory if "/" in name})

    def files(self, prefix: str, suffix: str = "") -> list[str]:
        return sorted(n for n in self.inventory if n.startswith(prefix) and n.endswith(suffix))

    def lists(self, *names: str) -> bool:
        """Whether the inventory has all of these files; what it leaves out is not compared."""
        return all(name in self.inventory for name in names)

    def json(self, name: str) -> Any:
        self._check_integrity(name)
        self._documents.add(name)
        return read_json(self.root / name)

    def open(self, name: str, case: str | None = None) -> GoldenFile:
        """Opens an .npz or .safetensors file; its comparisons are reported under `case`."""
        if name not in self._cases:
            self._check_integrity(name)
            self._cases[name] = GoldenFile(self, name, case or name.rsplit(".", 1)[0])
        return self._cases[name]

    def unchecked(self, group: str) -> list[Row]:
        """Rows for arrays and JSON files of a group that nothing has read or compared."""
        rows = []
        for name in self.files(f"{group}/"):
            file, listed = self._cases.get(name), self.inventory[name].get("arrays")
            parts = set(listed or {})
            if file:
                parts = (parts | set(file.arrays)) - file.seen
            elif not listed and name.endswith((".json", ".npz", ".safetensors")):
                known = name in self._documents or name.endswith(NO_RESULTS)
                parts = set() if known else {"(file)"}
            case = name.rsplit(".", 1)[0]
            rows += [
                failure(case, part, "not checked: this program does not know it")
                for part in sorted(parts)
            ]
        return rows

    def add(self, row: Row) -> None:
        self.rows.append(row)

    def _check_integrity(self, name: str) -> None:
        path = self.root / name
        if name not in self.inventory:
            raise UserError(f"{name} is not in {self.root / 'inventory.json'}")
        if not path.is_file():
            raise UserError(f"{path} is listed in inventory.json but is not there")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != self.inventory[name].get("sha256", digest):
            self.add(
                failure(name.rsplit(".", 1)[0], "(file)", "SHA-256 differs from inventory.json")
            )


class GoldenFile:
    """The arrays of one file. `get` takes inputs, `check` compares outputs."""

    def __init__(self, directory: GoldenDirectory, name: str, case: str):
        self.directory = directory
        self.case = case
        self.seen: set[str] = set()
        path = directory.root / name
        try:
            if name.endswith(".safetensors"):
                self.arrays = load_file(path)
            else:
                with np.load(path, allow_pickle=False) as archive:
                    self.arrays = {key: archive[key] for key in archive.files}
        except (SafetensorError, zipfile.BadZipFile, ValueError, OSError, EOFError) as error:
            raise UserError(f"{path} cannot be read: {error}") from error
        for key, (_, shape) in (directory.inventory[name].get("arrays") or {}).items():
            if key not in self.arrays:
                directory.add(failure(case, key, "listed in inventory.json, missing in the file"))
                self.seen.add(key)
            elif list(self.arrays[key].shape) != shape:
                directory.add(failure(case, key, "its shape is not the one in inventory.json"))

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def get(self, key: str) -> Any:
        """Returns a NumPy array as an input."""
        if key not in self.arrays:
            raise UserError(f"{self.case}: the array {key!r} is missing")
        self.seen.add(key)
        return self.arrays[key]

    def all(self) -> dict[str, np.ndarray]:
        """Returns every array as an input."""
        self.seen.update(self.arrays)
        return self.arrays

    def check(self, key: str, value: Any, tolerance: float = STRICT) -> None:
        """Compares an output with the recorded array, relative to that array's peak."""
        self.directory.add(compare(self.case, key, value, self.get(key), tolerance))

    def check_each(self, key: str, value: Any, tolerance: float = STRICT) -> None:
        """Compares a table that spans orders of magnitude, each element relative to itself."""
        value, expected = np.asarray(value, np.float64), self.get(key).astype(np.float64)
        plain = np.isfinite(expected) & (expected != 0)
        if value.shape == expected.shape:
            scale = np.where(plain, np.abs(expected), 1.0)
            value, expected = value / scale, expected / scale
        self.directory.add(compare(self.case, key, value, expected, tolerance))

    def check_norm(self, key: str, value: Any, tolerance: float) -> None:
        """Compares a gradient, relative to the recorded array's L2 norm."""
        self.directory.add(compare(self.case, key, value, self.get(key), tolerance, by_norm=True))

    def check_present(self, values: dict[str, Any], tolerance: float) -> None:
        """Compares those of `values` that the file has."""
        for key, value in values.items():
            if key in self.arrays:
                self.check(key, value, tolerance)


def compare(
    case: str, tensor: str, value: Any, expected: Any, tolerance: float, *, by_norm: bool = False
) -> Row:
    """Compares a value with the recorded one; integers and flags must be equal.

    Sentinels (|x| of 1e5 and more) are compared relative to themselves, the rest relative to the
    peak of the rest, so that a sentinel cannot hide an error.
    """
    if value is None:
        return failure(case, tensor, "this program computed no value for it")
    value, expected = np.asarray(value), np.asarray(expected)
    if value.shape != expected.shape:
        return failure(case, tensor, f"shape {value.shape}, recorded {expected.shape}")
    if expected.size == 0:
        return Row(case, tensor, 0.0, 0.0, tolerance, True)
    if expected.dtype.kind in "biu":
        wrong = int(np.sum(value != expected))
        return Row(
            case, tensor, float(wrong), float(wrong), 0.0, wrong == 0, "equal" if not wrong else ""
        )
    value, expected = value.astype(np.float64), expected.astype(np.float64)
    infinite = ~np.isfinite(expected)
    if not np.array_equal(value[infinite], expected[infinite]) or not np.all(
        np.isfinite(value[~infinite])
    ):
        return failure(case, tensor, "infinite or NaN where the other is not")
    if by_norm:
        difference = float(np.linalg.norm(value - expected))
        scale = max(float(np.linalg.norm(expected)), 1e-30)
        worst = float(np.max(np.abs(value - expected)))
        return Row(
            case, tensor, worst, difference / scale, tolerance, difference / scale <= tolerance
        )
    worst_abs = worst_rel = 0.0
    sentinel = (np.abs(expected) >= SENTINEL) & ~infinite
    for part in (sentinel, ~sentinel & ~infinite):
        if part.any():
            error = float(np.max(np.abs(value[part] - expected[part])))
            peak = float(np.max(np.abs(expected[part])))
            worst_abs = max(worst_abs, error)
            worst_rel = max(worst_rel, error / peak if peak else (np.inf if error else 0.0))
    return Row(case, tensor, worst_abs, worst_rel, tolerance, worst_rel <= tolerance)


def failure(case: str, tensor: str, note: str) -> Row:
    """A comparison that could not be made, and why."""
    return Row(case, tensor, float("nan"), float("nan"), 0.0, False, note)


def read_json(path: Path) -> Any:
    """Reads a JSON file; UserError names it when it cannot be read."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
