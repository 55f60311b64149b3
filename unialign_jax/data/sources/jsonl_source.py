"""JSONL files as a source of records: a first pass over the lines, and reading some of them."""

from __future__ import annotations

import array
import contextlib
import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, overload

import numpy as np

from unialign_jax.data.sources import jsonl
from unialign_jax.data.sources.source import Note, Scan, Where, log_entry
from unialign_jax.data.tasks import BadItem, Record
from unialign_jax.data.tokenizer import TextTokenizer, train_tokenizer
from unialign_jax.errors import UserError


class Place(NamedTuple):
    """Where a line stands: index of its file, byte offset, and line number from 1."""

    file: int
    offset: int
    line: int


class Places(Sequence[Place]):
    """Places of many lines, as one flat array of integers.

    Args:
        flat: the fields of every place in turn.
    """

    def __init__(self, flat: array.array | None = None):
        self.flat = array.array("q") if flat is None else flat

    def add(self, place: Place) -> None:
        """Appends a place."""
        self.flat.extend(place)

    def __len__(self) -> int:
        return len(self.flat) // len(Place._fields)

    @overload
    def __getitem__(self, index: int) -> Place: ...
    @overload
    def __getitem__(self, index: slice) -> Places: ...
    def __getitem__(self, index: int | slice) -> Place | Places:
        width = len(Place._fields)
        if isinstance(index, slice):
            begin, end, step = index.indices(len(self))
            if step != 1:
                raise ValueError("places are cut into runs only")
            return Places(self.flat[begin * width : end * width])
        at = range(len(self))[index] * width
        return Place(*self.flat[at : at + width])


@dataclasses.dataclass(frozen=True)
class JsonlSource:
    """Lines of JSONL files in the formats of `jsonl.py`, in their order.

    Attributes:
        paths: the files.
        options: how lines are read.
    """

    paths: tuple[Path, ...]
    options: jsonl.JsonlOptions = dataclasses.field(default_factory=jsonl.JsonlOptions)

    unit: ClassVar[str] = "lines"
    images_checked: ClassVar[bool] = False

    def scan(self) -> Scan:
        """Reads every line once: which stream it belongs to and where it stands in its file.

        Raises:
            UserError: when a file cannot be read, or none has a line.
        """
        streams: dict[str, Places] = {}
        bad: list[dict[str, Any]] = []
        ids: dict[str, array.array] = {}
        surplus: tuple[int, Place | None] = (0, None)
        digest = hashlib.sha256()
        for index, path in enumerate(self.paths):
            for place, data in _lines(index, path, digest.update):
                try:
                    line = jsonl.parse(data)
                    name = jsonl.stream_of(line, self.options.format)
                except BadItem as error:
                    bad.append(log_entry(_where(path, place.line), error))
                    continue
                if name not in streams:
                    streams[name], ids[name] = Places(), array.array("q")
                streams[name].add(place)
                ids[name].append(hash(jsonl.id_of(line, _item(path, place.line))))
                if unused := jsonl.surplus_images(line, self.options.format):
                    surplus = surplus[0] + unused, surplus[1] or place
        if not streams and not bad:
            files = ", ".join(map(str, self.paths))
            raise UserError(f"no lines in {files}: nothing to prepare")
        root = self.options.image_root
        identity = (
            digest.hexdigest(),
            self.options.format,
            None if root is None else str(root.resolve()),
        )
        notes = {"duplicate_id": _repeated(streams, ids), "surplus_image": surplus}
        return Scan(
            dict(streams),
            bad,
            identity,
            {
                kind: Note(count, f"{self.paths[first.file].name}, line {first.line}")
                for kind, (count, first) in notes.items()
                if first is not None
            },
        )

    def _read(
        self, items: Sequence[Place], read: Callable[..., bytes]
    ) -> Iterator[tuple[Where, Callable[[], Record]]]:
        def make(data: bytes, path: Path, number: int) -> Record:
            root = self.options.image_root
            root = path.parent if root is None else root
            line = jsonl.parse(data)
            return jsonl.read_record(line, _item(path, number), root, self.options, read)

        for index, places in itertools.groupby(items, key=lambda place: place.file):
            path = self.paths[index]
            with open(path, "rb") as file:
                for place in places:
                    file.seek(place.offset)
                    line = file.readline()
                    yield _where(path, place.line), functools.partial(make, line, path, place.line)

    def read(
        self, stream: str, items: Sequence[Place]
    ) -> Iterator[tuple[Where, Callable[[], Record]]]:
        """The lines with their images, which are read but not decoded; see `Source.read`."""
        del stream
        return self._read(items, jsonl.read_image)

    def check(self, stream: str, items: Sequence[Place]) -> Iterator[dict[str, Any]]:
        """Log entries of lines that lack a key or an image file."""
        del stream
        for where, make in self._read(items, jsonl.check_image):
            try:
                make()
            except BadItem as error:
                yield log_entry(where, error)

    def tokenizer(self, vocabulary: int | None) -> TextTokenizer | None:
        """A byte-pair tokenizer for the texts in the lines, if its size is given."""
        return None if vocabulary is None else train_tokenizer(self._texts(), vocabulary)

    def _texts(self) -> Iterator[str]:
        for path in self.paths:
            with open(path, "rb") as file:
                for data in file:
                    with contextlib.suppress(BadItem):
                        yield from jsonl.texts(jsonl.parse(data))

    def describe(self) -> dict[str, Any]:
        """The source's name."""
        return {"name": "jsonl"}


def _repeated(streams: dict[str, Places], ids: dict[str, array.array]) -> tuple[int, Place | None]:
    """How many lines have an id that stands in an earlier line as well, and the first of them.

    Args:
        streams: places of the lines of each stream.
        ids: hashes of their ids. Of 100 million different ids, any two agree in the 64 bits with a
            chance of 1 in 4000.
    """
    if not streams:
        return 0, None
    flat = [np.asarray(places.flat).reshape(-1, len(Place._fields)) for places in streams.values()]
    places = np.concatenate(flat)
    order = np.lexsort((places[:, 1], places[:, 0]))
    hashes = np.concatenate([np.asarray(part) for part in ids.values()])[order]
    _, first = np.unique(hashes, return_index=True)
    repeats = np.delete(order, first)
    return len(repeats), Place(*map(int, places[repeats[0]])) if len(repeats) else None


def _lines(
    index: int, path: Path, update: Callable[[bytes], None]
) -> Iterator[tuple[Place, bytes]]:
    """The lines of a file that are not blank; `update` receives the blank ones too."""
    try:
        with open(path, "rb") as file:
            offset = 0
            for number, data in enumerate(file, start=1):
                update(data)
                place, offset = Place(index, offset, number), offset + len(data)
                if data.strip():
                    yield place, data
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _where(path: Path, number: int) -> Where:
    return {"file": path.name, "line": number}


def _item(path: Path, number: int) -> str:
    """The id of a line that brings none."""
    return f"{path.stem}-{number}"
