"""Weights in safetensors files, read one tensor at a time.

A file is eight bytes with the length of the header, a JSON header with dtype, shape and place of
every tensor, and the bytes. Nothing in it is believed: a header that is cut short, lies about
places or sizes, or names a tensor twice is refused before anything is read. (The safetensors
library takes the last of two tensors of one name.)
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from unialign_jax.errors import UserError, bullets

SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
LARGEST_HEADER = 100_000_000
DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_PREFIX = 8
_SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<total>\d{5})\.safetensors")
_REMEDY = "Download or copy it again"


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a tensor lies.

    Attributes:
      file: that holds it.
      dtype: of its numbers.
      shape: of the array.
      start: offset of its first byte in the file.
    """

    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """The array, in memory of its own.

        Raises:
          UserError: the file has changed or cannot be read.
        """
        count = math.prod(self.shape)
        try:
            flat = np.fromfile(self.file, self.dtype, count, offset=self.start)
        except OSError as error:
            raise UserError(f"{self.file}: cannot be read: {error.strerror}") from error
        if flat.size != count:
            raise UserError(f"{self.file}: became shorter while it was read. {_REMEDY}.")
        return flat.reshape(self.shape)


class WeightFiles(Mapping[str, np.ndarray]):
    """A state dict on disk: names to arrays, each read when it is asked for.

    Attributes:
      path: what was opened.
      tensors: where each tensor lies.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]):
        self.path = path
        self.tensors = dict(tensors)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.tensors[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names to shapes, without reading a tensor."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.size for tensor in self.tensors.values())


def open_weights(path: str | os.PathLike[str]) -> WeightFiles:
    """Opens a safetensors file, an index of several, or the folder that holds either.

    Raises:
      UserError: nothing there, more than one set of weights, or damage; names the file and the key.
    """
    path = Path(path)
    if path.is_dir():
        path = _weights_in(path)
    if not path.is_file():
        raise UserError(f"{path}: is not there. Name a {SUFFIX} file, its index, or their folder.")
    if path.name.endswith(INDEX_SUFFIX):
        return WeightFiles(path, _read_index(path))
    return WeightFiles(path, read_header(path))


def _weights_in(folder: Path) -> Path:
    indexes = sorted(folder.glob(f"*{INDEX_SUFFIX}"))
    files = indexes or sorted(folder.glob(f"*{SUFFIX}"))
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or f"no {SUFFIX} file"
        raise UserError(f"{folder}: holds {names}; name the one to read.")
    return files[0]


def read_header(path: Path) -> dict[str, Tensor]:
    """Where the tensors of one file lie, every claim of the header checked.

    Raises:
      UserError: damage; names the file and the tensor.
    """
    try:
        with path.open("rb") as file:
            total = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(_PREFIX), "little")
            if total < _PREFIX or not 0 < length <= min(LARGEST_HEADER, total - _PREFIX):
                raise UserError(
                    f"{path}: is cut short or no safetensors file: {total} bytes, with a header of "
                    f"{length}. {_REMEDY}."
                )
            raw = file.read(length)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    begin = _PREFIX + length
    header = parse_json(path, raw, "its header")
    header.pop("__metadata__", None)
    tensors = {name: _parse(path, name, entry, begin) for name, entry in header.items()}
    end = begin
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].size)):
        if tensor.start != end:
            raise UserError(f"{path}: {name} does not begin where the tensor before it ends.")
        end += tensor.size
    if end != total:
        raise UserError(
            f"{path}: has {total} bytes, its header speaks of {end}: it is cut short or was "
            f"written over. {_REMEDY}."
        )
    return tensors


def _parse(path: Path, name: str, entry: Any, begin: int) -> Tensor:
    def require(good: bool, what: str) -> None:
        if not good:
            raise UserError(f"{path}: the header's entry {name!r} {what}.")

    require(isinstance(entry, dict), "is no object")
    require(set(entry) == {"dtype", "shape", "data_offsets"}, "lacks or has unknown fields")
    dtype, shape, places = entry["dtype"], entry["shape"], entry["data_offsets"]
    require(isinstance(dtype, str) and dtype in DTYPES, f"has dtype {dtype!r}, not one we read")
    for numbers in (shape, places):
        counts = isinstance(numbers, list) and all(type(n) is int and n >= 0 for n in numbers)
        require(counts, "has a shape or place that is no list of counts")
    require(len(places) == 2, "has no place of two numbers")
    tensor = Tensor(path, DTYPES[dtype], tuple(shape), begin + places[0])
    require(places[1] - places[0] == tensor.size, "has another size than its shape and dtype say")
    return tensor


def _read_index(path: Path) -> dict[str, Tensor]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    places = parse_json(path, raw, "it").get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(f, str) for f in places.values()):
        raise UserError(f"{path}: has no weight_map from names to files.")
    _check_all_listed(path, set(places.values()))
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        if name != Path(name).name or "\\" in name or not name.endswith(SUFFIX):
            raise UserError(
                f"{path}: names the file {name!r}; only {SUFFIX} files beside it are read."
            )
        shard = path.with_name(name)
        if not shard.is_file():
            raise UserError(f"{shard}: is not there, but {path.name} lists it. {_REMEDY}.")
        inside = read_header(shard)
        listed = {tensor for tensor, file in places.items() if file == name}
        wrong = sorted(listed ^ set(inside))
        if wrong:
            raise UserError(
                f"{shard}: does not hold what {path.name} says of it:\n{bullets(wrong, 10)}"
            )
        tensors |= inside
    return tensors


def _check_all_listed(path: Path, listed: set[str]) -> None:
    """An index that leaves a file out would leave out its tensors in silence."""
    for name in listed:
        match = _SHARD.fullmatch(name)
        if match:
            stem, total = match["stem"], int(match["total"])
            found = sum(one.startswith(f"{stem}-") for one in listed)
            if found != total:
                raise UserError(f"{path}: lists {found} of the {total} files of {stem}. {_REMEDY}.")


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def parse_json(path: Path, raw: bytes, what: str) -> dict[str, Any]:
    """A JSON object in which no key stands twice, or UserError."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = sorted({key for key in keys if keys.count(key) > 1})
            raise UserError(f"{path}: {what} names {', '.join(twice[:5])} twice.")
        return found

    try:
        text = raw.decode("utf-8")
        value = json.loads(text, object_pairs_hook=once, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {what} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: {what} is no JSON object.")
    return value
