"""A source of records to a prepared directory: the whole job, resumable at any point."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from unialign_jax.data import prepared, records, shards
from unialign_jax.data.sources.source import Note, Scan, Source, log_order
from unialign_jax.data.tasks import SCHEMA_VERSION, TRAINING_TASKS, Task
from unialign_jax.data.tokenizer import TextTokenizer, check_vocabulary
from unialign_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """How the job runs.

    Attributes:
        store: what shapes the records on disk.
        max_bad_share: more bad items than this share of all items stop the job (one is always
            allowed unless the share is 0).
        workers: processes; 0 works in this one.
        retry_bad: build shards with bad items again.
        overwrite: replace a data set made from something else.
        tokenizer: a tokenizer.json to put beside the records.
        train_tokenizer: or train one with this many entries on the source's texts; neither: the
            source's own, if it has one.
    """

    store: shards.StoreOptions = dataclasses.field(default_factory=shards.StoreOptions)
    max_bad_share: float = 0.01
    workers: int = 0
    retry_bad: bool = False
    overwrite: bool = False
    tokenizer: Path | None = None
    train_tokenizer: int | None = None


@dataclasses.dataclass
class Summary:
    """What a run found and did.

    Attributes:
        total: items, the bad ones included.
        counts: records by task.
        bad: left-out items by kind.
        notes: what is worth telling about items that were kept, by kind.
        shards_written, shards_kept: files built by this run, and found finished.
    """

    total: int
    counts: dict[str, int]
    bad: dict[str, int]
    notes: dict[str, Note]
    shards_written: int = 0
    shards_kept: int = 0


def bad_limit(share: float, total: int) -> int:
    """How many of `total` items may be bad: the share, but at least one unless it is 0."""
    return max(1, int(share * total)) if share else 0


def by_kind(bad: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Bad entries counted by kind, most frequent first."""
    return dict(collections.Counter(entry["kind"] for entry in bad).most_common())


def fingerprint(found: Scan, store: shards.StoreOptions) -> str:
    """What the shards depend on, as one SHA-256: the source and the options that shape records."""
    parts = [SCHEMA_VERSION, *found.identity, store.max_pixels]
    parts += [store.shards, store.size, store.encoding]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _claim(out: Path, code: str, overwrite: bool) -> None:
    """Checks that `out` is free or holds the same job; clears what a killed run left behind."""
    plan = out / prepared.MANIFEST / prepared.PLAN_FILE
    if plan.is_file() and prepared.read_json(plan).get("fingerprint") != code:
        if not overwrite:
            raise UserError(
                f"{out} holds a data set made from other input or with other options: choose "
                "another --out, or give --overwrite to replace it"
            )
        for old in (*out.glob(f"*/{records.TFDS_VERSION}"), plan.parent):
            shutil.rmtree(old)
        for name in (prepared.DATASET_FILE, prepared.TOKENIZER_FILE, prepared.BAD_RECORDS_FILE):
            (out / name).unlink(missing_ok=True)
    prepared.write_json(plan, {"schema_version": SCHEMA_VERSION, "fingerprint": code})
    for temporary in out.glob(f"*/{records.TFDS_VERSION}/{records.TEMPORARY_PREFIX}*"):
        temporary.unlink()


def _write_bad(out: Path, bad: Sequence[dict[str, Any]]) -> Path:
    path = out / prepared.BAD_RECORDS_FILE
    ordered = sorted(bad, key=log_order)
    lines = [json.dumps(entry, ensure_ascii=False) + "\n" for entry in ordered]
    prepared.write_text(path, "".join(lines))
    return path


def _put_tokenizer(out: Path, source: Source, options: PrepareOptions) -> None:
    target = out / prepared.TOKENIZER_FILE
    if options.tokenizer is not None:
        prepared.write_text(target, options.tokenizer.read_text("utf-8"))
        return
    tokenizer = source.tokenizer(options.train_tokenizer)
    if tokenizer is not None:
        prepared.write_text(target, tokenizer.to_json())


def _describe(
    out: Path, jobs: Sequence[shards.ShardJob], entries: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Writes the TFDS metadata of every stream with records; returns their `dataset.json` part."""
    files: dict[str, list[records.Shard]] = {}
    for job, entry in zip(jobs, entries, strict=True):
        shard = records.Shard(entry["file"], entry["examples"], entry["bytes"])
        files.setdefault(job.stream, []).append(shard)
    streams = []
    for name, parts in files.items():
        examples = sum(part.examples for part in parts)
        if not examples:
            continue
        records.write_metadata(records.stream_directory(out, name), name, parts)
        task, _, conditions = name.partition("_")
        streams.append(
            {
                "name": name,
                "task": task,
                "conditions": int(conditions or TRAINING_TASKS[Task(task)].conditions[0]),
                "examples": examples,
                "shards": [part._asdict() for part in parts],
            }
        )
    return streams


def prepare(
    source: Source,
    out: Path,
    options: PrepareOptions,
    *,
    on_start: Callable[[int], None] = lambda total: None,
    advance: Callable[[int], None] = lambda count: None,
) -> Summary:
    """Makes (or continues) a prepared directory from a source.

    Args:
        source: where the records come from, for example a `JsonlSource`.
        out: the directory to write (layout: `prepared.py`).
        options: see `PrepareOptions`.
        on_start: called once with the number of items to read.
        advance: called with the number of items done since the last call.

    Raises:
        UserError: unreadable or empty input, another data set in `out`, no space, or more bad
            items than `max_bad_share` allows (then `bad_records.jsonl` lists them).
    """
    # A tokenizer that cannot be had should show before the work, not after it.
    if options.tokenizer is not None:
        TextTokenizer.from_file(options.tokenizer)
    elif options.train_tokenizer is not None:
        check_vocabulary(options.train_tokenizer)
    found = source.scan()
    unit, total = source.unit, found.total
    on_start(total)
    limit = bad_limit(options.max_bad_share, total)
    code = fingerprint(found, options.store)
    _claim(out, code, options.overwrite)
    jobs = shards.plan_jobs(source, found, out, options.store, limit)
    entries: dict[Path, dict[str, Any]] = {}
    for job in jobs:
        entry = shards.finished(job)
        if entry is not None and not (options.retry_bad and entry["bad"]):
            entries[job.entry] = entry
    missing = [job for job in jobs if job.entry not in entries]
    kept = len(entries)
    if missing:
        # The data set counts as unfinished until the last shard is back.
        (out / prepared.DATASET_FILE).unlink(missing_ok=True)
    advance(total - sum(job.size for job in missing))

    bad = [*found.bad, *(item for entry in entries.values() for item in entry["bad"])]

    def check() -> None:
        if len(bad) > limit:
            log = _write_bad(out, bad)
            kinds = ", ".join(f"{count} {kind}" for kind, count in by_kind(bad).items())
            raise UserError(
                f"{len(bad)} bad {unit} among {total} ({kinds}), {limit} are allowed; {log} "
                "lists them. Raise --max-bad-share, or mend them and run again with --retry-bad "
                f"(--overwrite where the {unit} themselves change)"
            )

    check()
    with contextlib.closing(shards.build_all(missing, options.workers, advance)) as running:
        try:
            for entry in running:
                name = f"{entry['stream']}-{entry['index']:05d}.json"
                entries[out / prepared.MANIFEST / name] = entry
                bad += entry["bad"]
                check()
        except shards.TooManyBad as error:
            bad += error.bad
            check()
            raise
    log = _write_bad(out, bad)
    streams = _describe(out, jobs, [entries[job.entry] for job in jobs])
    if not streams:
        raise UserError(f"none of {total} {unit} is usable; {log} says why")
    counts: dict[str, int] = {}
    for stream in streams:
        counts[stream["task"]] = counts.get(stream["task"], 0) + stream["examples"]
    _put_tokenizer(out, source, options)
    prepared.write_json(
        out / prepared.DATASET_FILE,
        {
            "schema_version": SCHEMA_VERSION,
            "fingerprint": code,
            "source": source.describe(),
            "items": total,
            "counts": counts,
            "bad": by_kind(bad),
            "notes": {kind: dataclasses.asdict(note) for kind, note in found.notes.items()},
            "streams": streams,
        },
    )
    return Summary(total, counts, by_kind(bad), found.notes, len(missing), kept)


def survey(source: Source) -> Summary:
    """What `prepare` would find, reading every item but only looking for its images.

    Raises:
        UserError: when the source cannot be read.
    """
    found = source.scan()
    counts: dict[str, int] = {}
    bad = list(found.bad)
    for stream, items in found.streams.items():
        task = stream.partition("_")[0]
        unusable = list(source.check(stream, items))
        bad += unusable
        if len(unusable) < len(items):
            counts[task] = counts.get(task, 0) + len(items) - len(unusable)
    return Summary(found.total, counts, by_kind(bad), found.notes)
