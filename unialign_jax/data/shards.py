"""The shards of a prepared directory: which lines go where, and building them in parallel.

Which lines go into which shard follows from the files and options alone. A shard is complete
when its file and its entry in `manifest/` are there; a second start keeps such shards.
"""

from __future__ import annotations

import array
import concurrent.futures
import contextlib
import dataclasses
import json
import multiprocessing
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from unialign_jax.data import images, prepared, records
from unialign_jax.data.sources import jsonl
from unialign_jax.data.tasks import BadItem, Record, Task
from unialign_jax.errors import UserError

RECORDS_PER_SHARD = 512
TRIPLE = 3  # numbers per line in a scan: file, offset, line number


@dataclasses.dataclass(frozen=True)
class StoreOptions:
    """What shapes the records on disk.

    Attributes:
        source: how lines are read.
        shards: files per stream; None: one per 512 lines.
        size: scale the shorter side of larger images down to this before storing; None: keep.
        encoding: "png" (exact) or "jpeg" for scaled images.
    """

    source: jsonl.JsonlOptions = dataclasses.field(default_factory=jsonl.JsonlOptions)
    shards: int | None = None
    size: int | None = None
    encoding: str = "png"


@dataclasses.dataclass(frozen=True)
class ShardJob:
    """All that a worker needs to build one shard.

    Attributes:
        out: the prepared directory.
        stream, index, count: which shard of how many.
        lines: flat triples (file index, byte offset, line number).
        paths: the JSONL files.
        store: what shapes the records.
        bad_limit: more bad lines than this give the shard up.
    """

    out: Path
    stream: str
    index: int
    count: int
    lines: array.array
    paths: tuple[Path, ...]
    store: StoreOptions
    bad_limit: int

    @property
    def file(self) -> Path:
        """The shard's file."""
        name = records.shard_name(self.stream, self.index, self.count)
        return records.stream_directory(self.out, self.stream) / name

    @property
    def entry(self) -> Path:
        """The shard's entry in the manifest."""
        return self.out / prepared.MANIFEST / f"{self.stream}-{self.index:05d}.json"

    @property
    def size(self) -> int:
        """Number of lines."""
        return len(self.lines) // TRIPLE


class TooManyBad(Exception):
    """A shard gave up; carries its bad entries."""

    def __init__(self, bad: list[dict[str, Any]]):
        super().__init__(bad)
        self.bad = bad


def root_of(path: Path, options: jsonl.JsonlOptions) -> Path:
    """The folder that the image paths in a JSONL file start from."""
    return options.image_root if options.image_root is not None else path.parent


def finish_record(record: Record, store: StoreOptions) -> Record:
    """Decodes every image of a record (so that damage shows early) and fills in sizes.

    Raises:
        BadItem: an image or the record as a whole is unusable.
    """

    def stored(data: bytes) -> tuple[bytes, int, int]:
        return images.to_stored(data, store.size, store.encoding, store.source.max_pixels)

    target, height, width = stored(record.target)
    conditions = tuple(stored(data)[0] for data in record.conditions)
    return dataclasses.replace(
        record, target=target, height=height, width=width, conditions=conditions
    ).validate()


def plan_jobs(
    found: jsonl.Scan, paths: Sequence[Path], out: Path, store: StoreOptions, bad_limit: int
) -> list[ShardJob]:
    """Spreads the lines of each stream evenly and in order over its shards."""
    order = [str(task) for task in Task]
    jobs = []
    for stream in sorted(found.lines, key=lambda name: (order.index(name.split("_")[0]), name)):
        lines = found.lines[stream]
        total = len(lines) // TRIPLE
        count = min(total, store.shards or -(-total // RECORDS_PER_SHARD))
        for index in range(count):
            begin, end = index * total // count, (index + 1) * total // count
            part = lines[begin * TRIPLE : end * TRIPLE]
            jobs.append(ShardJob(out, stream, index, count, part, tuple(paths), store, bad_limit))
    return jobs


def finished(job: ShardJob) -> dict[str, Any] | None:
    """The manifest entry of a shard that is complete, else None."""
    try:
        entry = json.loads(job.entry.read_text("utf-8"))
        complete = job.file.stat().st_size == entry["bytes"] and job.file.name == entry["file"]
        return entry if complete and isinstance(entry["bad"], list) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def build(job: ShardJob, advance: Callable[[int], None] = lambda count: None) -> dict[str, Any]:
    """Writes one shard and then its manifest entry; returns the entry.

    Raises:
        TooManyBad: when more lines are bad than the job allows.
        UserError: when the shard cannot be written.
    """
    bad: list[dict[str, Any]] = []

    def good_records() -> Iterator[Record]:
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(open(path, "rb")) for path in job.paths]
            for at in range(0, len(job.lines), TRIPLE):
                index, offset, number = job.lines[at : at + TRIPLE]
                path = job.paths[index]
                files[index].seek(offset)
                root = root_of(path, job.store.source)
                try:
                    line = jsonl.parse(files[index].readline())
                    item = f"{path.stem}-{number}"
                    record = jsonl.read_record(line, item, root, job.store.source)
                    yield finish_record(record, job.store)
                except BadItem as error:
                    where = {"file": path.name, "line": number}
                    bad.append({**where, "kind": error.kind, "reason": error.reason})
                    if len(bad) > job.bad_limit:
                        raise TooManyBad(bad) from error
                advance(1)

    shard = records.write_shard(job.file, good_records())
    entry = {**shard._asdict(), "stream": job.stream, "index": job.index, "bad": bad}
    prepared.write_json(job.entry, entry)
    return entry


def _ignore_interrupt() -> None:
    # Ctrl-C reaches every process of the terminal; a worker finishes its shard, the parent stops.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def build_all(
    jobs: Sequence[ShardJob], workers: int, advance: Callable[[int], None]
) -> Generator[dict[str, Any], None, None]:
    """Builds shards in this process (`workers` 0) or in several; yields entries as they come.

    Raises:
        TooManyBad, UserError: see `build`; also UserError when a worker process dies.
    """
    if workers < 1 or len(jobs) < 2:
        for job in jobs:
            yield build(job, advance)
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        min(workers, len(jobs)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_ignore_interrupt,
    )
    try:
        pending = {pool.submit(build, job): job for job in jobs}
        for future in concurrent.futures.as_completed(pending):
            entry = future.result()
            advance(pending[future].size)
            yield entry
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process died (out of memory?): run again with fewer --workers; "
            "finished shards are kept"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
