"""The features of a data set computed once: any teacher, any task, resumable at any point.

There is a part for every shard of records (`parts.py`); a second start keeps finished ones.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unialign_jax.caching import parts
from unialign_jax.caching.files import TEMPORARY_PREFIX, write_json
from unialign_jax.caching.parts import CacheOptions, PartJob
from unialign_jax.caching.teacher import Teacher
from unialign_jax.data import features, prepared
from unialign_jax.data.schedule import Stream
from unialign_jax.data.tasks import TRAINING_TASKS
from unialign_jax.errors import UserError


@dataclasses.dataclass
class Summary:
    """What a run found and did.

    Attributes:
        directory: of the cache.
        image_shape: of one record's image features.
        counts: records by stream.
        captions: captions in all.
        bad: records without features by kind of damage; training replaces them too.
        parts_written, parts_kept: computed by this run, and found finished.
        bytes: on disk.
    """

    directory: Path
    image_shape: tuple[int, ...] = ()
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    captions: int = 0
    bad: dict[str, int] = dataclasses.field(default_factory=dict)
    parts_written: int = 0
    parts_kept: int = 0
    bytes: int = 0


def cached_streams(data: prepared.Prepared) -> list[Stream]:
    """The streams that have an image branch, and so intrinsic-modal losses."""
    return [s for s in data.streams if TRAINING_TASKS[s.task].image_branch]


def fingerprint(data: prepared.Prepared, teacher: Teacher, options: CacheOptions) -> str:
    """What the features depend on, as one SHA-256: teacher, what of it, and the records."""
    of = [features.FORMAT, teacher.fingerprint, teacher.pixels, options.grid, options.dtype]
    return hashlib.sha256(json.dumps([*of, data.fingerprint]).encode()).hexdigest()


def plan_jobs(data: prepared.Prepared) -> list[PartJob]:
    """A part for every shard of every stream that needs features, in order."""
    jobs = []
    for stream in cached_streams(data):
        start = 0
        for index, shard in enumerate(data.shards(stream.name)):
            jobs.append(PartJob(stream.name, index, start, shard.examples))
            start += shard.examples
    return jobs


def write_cache(
    data: prepared.Prepared,
    teacher: Teacher,
    name: str,
    options: CacheOptions,
    *,
    on_start: Callable[[int, int], None] = lambda total, done: None,
    advance: Callable[[int], None] = lambda count: None,
) -> Summary:
    """Computes (or continues) the features of every record.

    Args:
        data: the data set; the features go below its directory.
        teacher: what computes them.
        name: of the cache, for `data.features`.
        options: see `CacheOptions`.
        on_start: called once with the number of records and how many are done already.
        advance: called with the number of records done since the last call.

    Raises:
        UserError: another cache of that name, a folder that cannot be written, features that are
            not finite.
    """
    cache = features.cache_directory(data.directory, name)
    jobs = plan_jobs(data)
    if not jobs:
        raise UserError(
            f"{data.directory} has only records without an image to learn: nothing to compute"
        )
    code = fingerprint(data, teacher, options)
    _claim(cache, code, options.overwrite)
    entries = {job: entry for job in jobs if (entry := parts.finished(cache, job)) is not None}
    kept = len(entries)
    total = sum(job.size for job in jobs)
    on_start(total, sum(job.size for job in entries))
    missing = [job for job in jobs if job not in entries]
    if missing:
        # The cache counts as unfinished until the last part is back.
        (cache / features.CACHE_FILE).unlink(missing_ok=True)
    sources = {stream.name: data.source(stream.name) for stream in cached_streams(data)}
    for job in missing:
        entries[job] = parts.compute(cache, job, sources[job.stream], teacher, options, advance)

    streams: dict[str, list[dict[str, Any]]] = {}
    bad: collections.Counter[str] = collections.Counter()
    for job in jobs:
        streams.setdefault(job.stream, []).append(entries[job]["part"])
        bad.update(entry["kind"] for entry in entries[job]["bad"])
    first = entries[jobs[0]]
    described = {
        "format": features.FORMAT,
        "fingerprint": code,
        "data": data.fingerprint,
        "teacher": {"name": teacher.name, "fingerprint": teacher.fingerprint},
        "pixels": teacher.pixels,
        "dtype": options.dtype,
        "image_shape": first["image_shape"],
        "text_width": first["text_width"],
        "bad": dict(bad),
        "streams": streams,
    }
    if missing or not (cache / features.CACHE_FILE).is_file():
        write_json(cache / features.CACHE_FILE, described)
    return Summary(
        directory=cache,
        image_shape=tuple(first["image_shape"]),
        counts={name: sum(part["examples"] for part in of) for name, of in streams.items()},
        captions=sum(part["captions"] for of in streams.values() for part in of),
        bad=dict(bad),
        parts_written=len(missing),
        parts_kept=kept,
        bytes=sum(sum(part["bytes"]) for of in streams.values() for part in of),
    )


def _claim(cache: Path, code: str, overwrite: bool) -> None:
    """Checks that the cache is free or holds the same job; clears what a killed run left."""
    plan = cache / prepared.MANIFEST / prepared.PLAN_FILE
    if plan.is_file() and prepared.read_json(plan).get("fingerprint") != code:
        if not overwrite:
            raise UserError(
                f"{cache} holds features of another teacher, with other options or of another "
                "version of the records: give --overwrite to replace them, or another --name"
            )
        shutil.rmtree(cache)
    if not plan.is_file():
        write_json(plan, {"format": features.FORMAT, "fingerprint": code})
    for temporary in cache.rglob(f"{TEMPORARY_PREFIX}*"):
        temporary.unlink()
