"""The shards of a prepared directory: which items go where, and building them in parallel.

Which items go into which shard follows from the source and options alone. A shard is complete
when its file and its entry in `manifest/` are there; a second start keeps such shards.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import multiprocessing
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from unialign_jax.data import images, prepared, records
from unialign_jax.data.sources.source import Scan, Source, log_entry
from unialign_jax.data.tasks import BadItem, Record, Task
from unialign_jax.errors import UserError

RECORDS_PER_SHARD = 512


@dataclasses.dataclass(frozen=True)
class StoreOptions:
    """What shapes the records on disk, whatever their source.

    Attributes:
        shards: files per stream; None: one per 512 items.
        size: scale the shorter side of larger images down to this before storing; None: keep.
        encoding: "png" (exact) or "jpeg" for scaled images.
        max_pixels: largest height times width of an image.
    """

    shards: int | None = None
    size: int | None = None
    encoding: str = "png"
    max_pixels: int = images.MAX_PIXELS


@dataclasses.dataclass(frozen=True)
class ShardJob:
    """All that a worker needs to build one shard.

    Attributes:
        out: the prepared directory.
        stream, index, count: which shard of how many.
        source: where its records come from.
        items: the source's names of them.
        store: what shapes the records.
        bad_limit: more bad items than this give the shard up.
    """

    out: Path
    stream: str
    index: int
    count: int
    source: Source
    items: Sequence[Any]
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
        """Number of items."""
        return len(self.items)


class TooManyBad(Exception):
    """A shard gave up; carries its bad entries."""

    def __init__(self, bad: list[dict[str, Any]]):
        super().__init__(bad)
        self.bad = bad


def finish_record(record: Record, store: StoreOptions) -> Record:
    """Decodes every image of a record (so that damage shows early) and fills in sizes.

    Raises:
        BadItem: an image or the record as a whole is unusable.
    """

    def stored(data: bytes) -> tuple[bytes, int, int]:
        return images.to_stored(data, store.size, store.encoding, store.max_pixels)

    target, height, width = stored(record.target)
    conditions = tuple(stored(data)[0] for data in record.conditions)
    return dataclasses.replace(
        record, target=target, height=height, width=width, conditions=conditions
    ).validate()


def plan_jobs(
    source: Source, found: Scan, out: Path, store: StoreOptions, bad_limit: int
) -> list[ShardJob]:
    """Spreads the items of each stream evenly and in order over its shards."""
    order = [str(task) for task in Task]
    jobs = []
    for stream in sorted(found.streams, key=lambda name: (order.index(name.split("_")[0]), name)):
        items = found.streams[stream]
        total = len(items)
        count = min(total, store.shards or -(-total // RECORDS_PER_SHARD))
        for index in range(count):
            part = items[index * total // count : (index + 1) * total // count]
            jobs.append(ShardJob(out, stream, index, count, source, part, store, bad_limit))
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
        TooManyBad: when more items are bad than the job allows.
        UserError: when the shard cannot be written.
    """
    bad: list[dict[str, Any]] = []

    def good_records() -> Iterator[Record]:
        for where, make in job.source.read(job.stream, job.items):
            try:
                record = make()
                checked = job.source.images_checked
                yield record.validate() if checked else finish_record(record, job.store)
            except BadItem as error:
                bad.append(log_entry(where, error))
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
