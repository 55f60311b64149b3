"""One part of a feature cache: the features of one shard of records (`data/features.py`).

A part is complete when its files and its entry in the manifest are there. Files appear under their
names only when they are whole.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from unialign_jax.caching.files import whole_file, write_json
from unialign_jax.caching.teacher import Teacher
from unialign_jax.data import features, images, prepared
from unialign_jax.data.features import Part
from unialign_jax.data.records import RecordError, RecordSource
from unialign_jax.data.tasks import BadItem
from unialign_jax.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8

DTYPES = ("float16", "float32")
MOST_THREADS = 8


@dataclasses.dataclass(frozen=True)
class CacheOptions:
    """What is computed, and how.

    Attributes:
        grid: features of an image's parts instead of the whole image's.
        dtype: of the stored features, one of `DTYPES`.
        batch: images, or texts, that the teacher gets at once.
        overwrite: replace features of another teacher, of other options or of other records.
    """

    grid: bool = False
    dtype: str = "float16"
    batch: int = 64
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}: one of {', '.join(DTYPES)}")
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}: at least 1")


@dataclasses.dataclass(frozen=True)
class PartJob:
    """One part to compute: `size` records of a stream from `start` on."""

    stream: str
    index: int
    start: int
    size: int

    def entry(self, cache: Path) -> Path:
        """The part's entry in the manifest."""
        return cache / prepared.MANIFEST / f"{self.stream}-{self.index:05d}.json"


def finished(cache: Path, job: PartJob) -> dict[str, Any] | None:
    """The manifest entry of a part that is complete, else None."""
    try:
        entry = json.loads(job.entry(cache).read_text("utf-8"))
        part = entry["part"]
        part = Part(part["examples"], part["captions"], tuple(part["bytes"]))
        whole = part.examples == job.size and isinstance(entry["bad"], list)
        return entry if whole and features.complete(cache, job.stream, job.index, part) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


class _Row(NamedTuple):
    """What a teacher sees of a record, and the log entry of one that cannot be used."""

    pixels: UInt8[np.ndarray, "P P 3"]
    captions: tuple[str, ...]
    bad: dict[str, Any] | None


def compute(
    cache: Path,
    job: PartJob,
    source: RecordSource,
    teacher: Teacher,
    options: CacheOptions,
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Writes the files of one part and then its manifest entry; returns the entry.

    A record that cannot be used has zeros: training replaces it by another one.

    Raises:
        UserError: a file that cannot be written, features that are not finite.
    """
    files = [features.array_file(cache, job.stream, name, job.index) for name in features.ARRAYS]
    bad: list[dict[str, Any]] = []
    texts: list[str] = []
    offsets = [0]
    shape: tuple[int, ...] = ()
    with whole_file(files[0]) as file:
        for rows in _rows(source, job, teacher.pixels, options.batch):
            pixels = np.stack([row.pixels for row in rows])
            values = teacher.image_features(_filled(pixels, options.batch), grid=options.grid)
            values = _storable(values[: len(rows)], teacher, options)
            values[[row.bad is not None for row in rows]] = 0
            if not shape:
                # Written piece by piece: a grid of a large teacher's shard may exceed the memory.
                shape = (job.size, *values.shape[1:])
                header = np.lib.format.header_data_from_array_1_0(values) | {"shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(values.tobytes())
            for row in rows:
                texts += row.captions
                offsets.append(len(texts))
                bad += [] if row.bad is None else [row.bad]
            advance(len(rows))
    text = _text_features(texts, teacher, options)
    for path, array in ((files[1], text), (files[2], np.asarray(offsets, np.int64))):
        with whole_file(path) as file:
            np.save(file, array, allow_pickle=False)
    part = Part(job.size, len(texts), tuple(file.stat().st_size for file in files))
    entry = {
        "part": part._asdict(),
        "image_shape": list(shape[1:]),
        "text_width": text.shape[1],
        "bad": bad,
    }
    write_json(job.entry(cache), entry)
    return entry


def _rows(source: RecordSource, job: PartJob, pixels: int, batch: int) -> Iterator[list[_Row]]:
    """The records of a part in batches, decoded by threads up to two batches ahead."""

    def load(index: int) -> _Row:
        captions: tuple[str, ...] = ()
        try:
            record = source[index]
            captions = record.captions
            image = images.decode(record.target)
            return _Row(images.to_pixels(image, pixels), captions, None)
        except RecordError as error:
            problem = BadItem("damaged", str(error))
        except BadItem as error:
            problem = BadItem(error.kind, f"{source.where(index)}: {error.reason}")
        bad = {"record": index, "kind": problem.kind, "reason": problem.reason}
        return _Row(np.zeros((pixels, pixels, 3), np.uint8), captions, bad)

    todo = iter(range(job.start, job.start + job.size))
    pool = concurrent.futures.ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1))
    try:
        ahead = collections.deque(
            pool.submit(load, index) for index in itertools.islice(todo, 2 * batch)
        )
        while ahead:
            rows = []
            while ahead and len(rows) < batch:
                rows.append(ahead.popleft().result())
                ahead += [pool.submit(load, index) for index in itertools.islice(todo, 1)]
            yield rows
    finally:
        pool.shutdown(cancel_futures=True)


def _text_features(
    texts: Sequence[str], teacher: Teacher, options: CacheOptions
) -> Float[np.ndarray, "T A"]:
    """The storable features of texts; [0, A] where there are none."""
    found = []
    for start in range(0, max(len(texts), 1), options.batch):
        lines = list(texts[start : start + options.batch])
        values = teacher.text_features(lines + [""] * (options.batch - len(lines)))
        found.append(_storable(values[: len(lines)], teacher, options))
    return np.concatenate(found)


def _filled(rows: np.ndarray, count: int) -> np.ndarray:
    """`rows` with zeros up to `count` of them: a teacher that compiles sees one shape only."""
    return np.concatenate([rows, np.zeros((count - len(rows), *rows.shape[1:]), rows.dtype)])


def _storable(values: np.ndarray, teacher: Teacher, options: CacheOptions) -> np.ndarray:
    """A copy in the dtype of the cache.

    Raises:
        UserError: it cannot hold the values, or they are not finite.
    """
    with np.errstate(over="ignore"):
        stored = np.array(values, options.dtype)
    if np.isfinite(stored).all():
        return stored
    if np.isfinite(values).all():
        raise UserError(
            f"features of the teacher {teacher.name!r} are too large for {options.dtype}: "
            "cache them with --dtype float32"
        )
    raise UserError(f"the teacher {teacher.name!r} gives features that are not finite")
