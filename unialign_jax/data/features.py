"""Side-car features: what a frozen teacher says of every record, zipped to the records by index.

`unialign cache` writes them (`unialign_jax/caching`), training reads them here, memory-mapped:

```
DIR/features/NAME/cache.json                 written last: what was computed, of what, how much
DIR/features/NAME/manifest/                  the plan and one file per finished part
DIR/features/NAME/STREAM/image-00000.npy     [records, A], or [records, rows, columns, A]
DIR/features/NAME/STREAM/text-00000.npy      [captions, A], of the records in order
DIR/features/NAME/STREAM/offsets-00000.npy   int64 [records + 1]: where a record's captions begin
```

There is a part for every shard of records, with as many records as the shard.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from unialign_jax.data import prepared
from unialign_jax.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Float

    Features = tuple[Float[np.ndarray, "*RC A"], Float[np.ndarray, " A"]]

FORMAT = 1
FOLDER = "features"
CACHE_FILE = "cache.json"
ARRAYS = ("image", "text", "offsets")


class Part(NamedTuple):
    """The features of one shard: its records, their captions, the bytes of each of `ARRAYS`."""

    examples: int
    captions: int
    bytes: tuple[int, ...]


def cache_directory(directory: Path, name: str) -> Path:
    """Where the cache `name` of a prepared directory lies.

    Raises:
        UserError: the name is not a plain file name.
    """
    if not name or name.startswith(".") or Path(name).name != name:
        raise UserError(f"{name!r} is not a name for a feature cache: letters, digits, _ and -")
    return directory / FOLDER / name


def array_file(cache: Path, stream: str, array: str, index: int) -> Path:
    """The file of one of `ARRAYS` for part `index` of a stream."""
    return cache / stream / f"{array}-{index:05d}.npy"


def complete(cache: Path, stream: str, index: int, part: Part) -> bool:
    """Whether the files of a part are there in their full sizes."""
    for array, size in zip(ARRAYS, part.bytes, strict=True):
        file = array_file(cache, stream, array, index)
        if not file.is_file() or file.stat().st_size != size:
            return False
    return True


class FeatureSource:
    """The features of one stream by record index; can be sent to worker processes.

    Args:
        cache: the cache's directory.
        stream: whose features.
        parts: in the order of the record shards.
        dtype: of the features.
        image_shape: of a record's image features.
        text_width: of a caption's features.
    """

    def __init__(
        self,
        cache: Path,
        stream: str,
        parts: Sequence[Part],
        dtype: str,
        image_shape: tuple[int, ...],
        text_width: int,
    ):
        self._cache, self._stream, self._parts = cache, stream, tuple(parts)
        self._dtype, self._image_shape, self._text_width = dtype, image_shape, text_width
        self._ends = list(itertools.accumulate(part.examples for part in parts))
        self._open: dict[int, tuple[np.ndarray, ...]] = {}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def get(self, index: int, caption: int = 0) -> Features:
        """The features of a record.

        Args:
            index: of the record within its stream.
            caption: which of its captions; a record without any has zeros.

        Returns:
            Copies, in the dtype of the cache: of the image, [A] or [rows, columns, A], and of
            the caption, [A].

        Raises:
            IndexError: no such record or caption.
            UserError: a file that cannot be read.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect.bisect_right(self._ends, index)
        place = index - (self._ends[number - 1] if number else 0)
        image, text, offsets = self._arrays(number)
        begin, end = int(offsets[place]), int(offsets[place + 1])
        if begin == end:
            return np.array(image[place]), np.zeros(self._text_width, self._dtype)
        if not 0 <= caption < end - begin:
            raise IndexError(f"caption {caption} of record {index}, which has {end - begin}")
        return np.array(image[place]), np.array(text[begin + caption])

    def _arrays(self, number: int) -> tuple[np.ndarray, ...]:
        """The three arrays of a part, memory-mapped."""
        if number not in self._open:
            part = self._parts[number]
            shapes = (
                (part.examples, *self._image_shape),
                (part.captions, self._text_width),
                (part.examples + 1,),
            )
            dtypes = (self._dtype, self._dtype, "int64")
            self._open[number] = tuple(
                self._map(array_file(self._cache, self._stream, array, number), shape, dtype)
                for array, shape, dtype in zip(ARRAYS, shapes, dtypes, strict=True)
            )
        return self._open[number]

    def _map(self, file: Path, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        # The numbers stand at the end of an .npy file. Its header is not read: np.load parses it as
        # Python, which fails now and then when several threads do (Python 3.11).
        size = math.prod(shape) * np.dtype(dtype).itemsize
        try:
            header = file.stat().st_size - size
            if header < 0:
                raise ValueError(f"it is {-header} bytes short")
            if not size:
                return np.zeros(shape, dtype)
            return np.memmap(file, dtype, "r", header, shape)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{file} cannot be read ({error}): run the same `unialign cache` command again"
            ) from error


class FeatureCache:
    """An opened cache of teacher features.

    Args:
        data: the data set that it belongs to.
        name: of the cache, `data.features` of a config.

    Raises:
        UserError: no such cache, an unfinished or damaged one, or one of another version of the
            data set; each with the remedy.
    """

    def __init__(self, data: prepared.Prepared, name: str):
        self.directory = cache_directory(data.directory, name)
        again = "run the same `unialign cache` command again"
        path = self.directory / CACHE_FILE
        if not path.is_file():
            if (self.directory / prepared.MANIFEST / prepared.PLAN_FILE).is_file():
                raise UserError(
                    f"{self.directory} is not finished: {again}, it continues where it stopped"
                )
            there = sorted(p.parent.name for p in self.directory.parent.glob(f"*/{CACHE_FILE}"))
            have = f"; there are {', '.join(there)}" if there else ""
            raise UserError(
                f"data.features is {name!r}, but {data.directory} has no features of that name"
                f"{have}: run `unialign cache --data {data.directory}`, or correct data.features"
            )
        self.info = prepared.read_json(path)
        if self.info.get("format") != FORMAT:
            raise UserError(
                f"{path}: format {self.info.get('format')}, this program reads {FORMAT}: {again} "
                "with --overwrite"
            )
        if self.info.get("data") != data.fingerprint:
            raise UserError(
                f"{self.directory} was computed on another version of the data set in "
                f"{data.directory}: {again} with --overwrite"
            )
        try:
            self.image_shape = tuple(int(size) for size in self.info["image_shape"])
            self.text_width = int(self.info["text_width"])
            self.dtype = str(np.dtype(self.info["dtype"]))
            self._parts = {
                stream: [Part(p["examples"], p["captions"], tuple(p["bytes"])) for p in parts]
                for stream, parts in self.info["streams"].items()
            }
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is damaged ({error!r}): {again} with --overwrite") from error
        for stream, parts in self._parts.items():
            for index, part in enumerate(parts):
                if not complete(self.directory, stream, index, part):
                    raise UserError(
                        f"{self.directory}: part {index} of `{stream}` is missing or damaged: "
                        f"{again}, it computes what is gone"
                    )

    @property
    def grid(self) -> bool:
        """Whether the image features have rows and columns."""
        return len(self.image_shape) == 3

    def source(self, stream: str) -> FeatureSource | None:
        """The features of a stream; None for one whose training has no use for them."""
        if stream not in self._parts:
            return None
        shapes = self.dtype, self.image_shape, self.text_width
        return FeatureSource(self.directory, stream, self._parts[stream], *shapes)


def open_features(
    data: prepared.Prepared, streams: Sequence[str], name: str
) -> dict[str, FeatureSource]:
    """The features of those streams that have some; none for the empty name.

    Raises:
        UserError: see `FeatureCache`.
    """
    if not name:
        return {}
    cache = FeatureCache(data, name)
    found = {stream: cache.source(stream) for stream in streams}
    return {stream: source for stream, source in found.items() if source is not None}
