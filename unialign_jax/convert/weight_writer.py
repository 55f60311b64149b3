"""Writing safetensors files tensor by tensor, in several files above a size."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unialign_jax.bundle.copying import contiguous, read_ahead
from unialign_jax.convert.weight_files import DTYPES, INDEX_SUFFIX, SUFFIX

LIMIT = 5_000_000_000
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# As the libraries of these files pad their headers.
_ALIGNMENT = 8


@dataclasses.dataclass(frozen=True)
class Planned:
    """A tensor to be written.

    Attributes:
      name: in the state dict.
      dtype: one of `weight_files.DTYPES`.
      shape: of the array.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_weights(
    folder: Path,
    stem: str,
    planned: Sequence[Planned],
    read: Callable[[str], np.ndarray],
    limit: int = LIMIT,
) -> list[Path]:
    """Writes a state dict, one tensor in memory at a time.

    Args:
      folder: that gets the files.
      stem: `STEM.safetensors`, or `STEM-00001-of-00002.safetensors` and so on with
        `STEM.safetensors.index.json`.
      planned: the tensors; those of a file are read widest type first.
      read: name -> array, of the planned dtype and shape; called in the order of the files, in a
        thread of its own.
      limit: bytes of a file, at most; a larger tensor gets one of its own.

    Returns:
      The files, the index last.

    Raises:
      ValueError: an array is not what was planned.
      OSError: the disk is full, or another failure of writing.
    """
    shards: list[list[Planned]] = [[]]
    for tensor in planned:
        filled = sum(one.size for one in shards[-1])
        if shards[-1] and filled + tensor.size > limit:
            shards.append([])
        shards[-1].append(tensor)
    if len(shards) == 1:
        return [_write_file(folder / f"{stem}{SUFFIX}", shards[0], read)]
    files, places = [], {}
    for number, shard in enumerate(shards, 1):
        path = folder / f"{stem}-{number:05}-of-{len(shards):05}{SUFFIX}"
        files.append(_write_file(path, shard, read))
        places |= {tensor.name: path.name for tensor in shard}
    index = {"metadata": {"total_size": sum(t.size for t in planned)}, "weight_map": places}
    path = folder / f"{stem}{INDEX_SUFFIX}"
    path.write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    return [*files, path]


def _write_file(path: Path, planned: Sequence[Planned], read: Callable[[str], Any]) -> Path:
    # Wide types first: every tensor then begins at a multiple of its own width.
    ordered = sorted(planned, key=lambda tensor: -tensor.dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in ordered:
        places = [end, end + tensor.size]
        header[tensor.name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": places,
        }
        end = places[1]
    raw = json.dumps(header, separators=(",", ":")).encode("utf-8")
    raw += b" " * (-len(raw) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for tensor, array in read_ahead(
            ordered, lambda t: contiguous(np.asarray(read(t.name))), lambda t: t.size
        ):
            if array.dtype != tensor.dtype or array.shape != tensor.shape:
                raise ValueError(
                    f"{tensor.name} is {array.dtype} {array.shape}, planned was {tensor.dtype} "
                    f"{tensor.shape}"
                )
            file.write(array.reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())
    return path
