"""A prepared directory: what `unialign prepare` leaves and training opens.

```
DIR/dataset.json              written last: streams, shards, counts, tokenizer, fingerprint
DIR/tokenizer.json            where one was given or trained
DIR/bad_records.jsonl         items that were left out, with line and reason
DIR/manifest/                 the plan and one file per finished shard
DIR/generate/1.0.0/           one ordinary TFDS data set per stream
DIR/features/                 what `unialign cache` puts beside the records (`features.py`)
```
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unialign_jax.data.records import RecordSource, Shard, stream_directory
from unialign_jax.data.schedule import Stream
from unialign_jax.data.tasks import SCHEMA_VERSION, TRAINING_TASKS, Task
from unialign_jax.errors import UserError

DATASET_FILE = "dataset.json"
TOKENIZER_FILE = "tokenizer.json"
BAD_RECORDS_FILE = "bad_records.jsonl"
MANIFEST = "manifest"
PLAN_FILE = "plan.json"


def write_text(path: Path, text: str) -> None:
    """Writes a file under a temporary name and renames it: a reader sees all of it or nothing.

    Raises:
        UserError: when the folder cannot be written or the disk is full.
    """
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, "utf-8")
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(
            f"cannot write {path}: {error.strerror or error}. Free some space or choose another "
            "--out; finished shards are kept and the same command continues after them"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """`write_text` of a value as JSON."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        UserError: when it is not one.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): run `unialign prepare` again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object: run `unialign prepare` again")
    return value


def stream_name(task: Task, conditions: int) -> str:
    """The stream of a record: its task, and for `compose` the number of references."""
    return f"{task}_{conditions}" if task is Task.COMPOSE else str(task)


class Prepared:
    """An opened data set: its streams, their records and its tokenizer.

    Args:
        directory: what `unialign prepare --out` wrote.

    Raises:
        UserError: no such data set, an unfinished or damaged one, a missing or cut shard, or
            another schema version; each with the file and the remedy.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        path = self.directory / DATASET_FILE
        if not path.is_file():
            if (self.directory / MANIFEST / PLAN_FILE).is_file():
                raise UserError(
                    f"{self.directory} is not finished: run the same `unialign prepare` command "
                    "again, it continues where it stopped"
                )
            raise UserError(
                f"no data set at {self.directory} (no {DATASET_FILE}): "
                "make one with `unialign prepare`, or correct data.path"
            )
        self.info = read_json(path)
        version = self.info.get("schema_version")
        if version != SCHEMA_VERSION:
            raise UserError(
                f"{path}: schema version {version}, this program reads {SCHEMA_VERSION}: "
                "prepare the data set again with this program"
            )
        try:
            self._shards = {
                stream["name"]: [Shard(**shard) for shard in stream["shards"]]
                for stream in self.info["streams"]
            }
            self.streams = tuple(
                Stream(s["name"], Task(s["task"]), int(s["conditions"]), int(s["examples"]))
                for s in self.info["streams"]
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} is damaged ({error!r}): run `unialign prepare` again"
            ) from error
        self._check_files()

    def _check_files(self) -> None:
        for stream, shards in self._shards.items():
            for shard in shards:
                file = stream_directory(self.directory, stream) / shard.file
                remedy = "run the same `unialign prepare` command again, it rewrites what is gone"
                if not file.is_file():
                    raise UserError(f"{file} is missing: {remedy}")
                size = file.stat().st_size
                if size != shard.bytes:
                    raise UserError(
                        f"{file} is damaged: {size} bytes instead of {shard.bytes}; {remedy}"
                    )

    @property
    def fingerprint(self) -> str:
        """A SHA-256 of what the records were made from and of how they lie in shards."""
        parts = [self.info.get("fingerprint"), self._shards]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def shards(self, stream: str) -> tuple[Shard, ...]:
        """The shards of a stream that hold records, in order."""
        return tuple(shard for shard in self._shards[stream] if shard.examples)

    def source(self, stream: str) -> RecordSource:
        """The records of one stream.

        Raises:
            UserError: when there is no such stream.
        """
        if stream not in self._shards:
            raise UserError(
                f"{self.directory} has no `{stream}` records; it has {', '.join(self._shards)}"
            )
        return RecordSource(stream_directory(self.directory, stream), self._shards[stream])

    def tokenizer_path(self) -> Path:
        """The tokenizer that was prepared with the data.

        Raises:
            UserError: when there is none.
        """
        path = self.directory / TOKENIZER_FILE
        if not path.is_file():
            raise UserError(
                f"{path} is missing: prepare with --tokenizer FILE (T5's tokenizer.json) or "
                "--train-tokenizer VOCABULARY"
            )
        return path

    def select(self, mixture: Mapping[str, float]) -> tuple[list[Stream], list[float]]:
        """The streams of the tasks in a mixture, and their weights.

        A task's weight is spread over its streams by their sizes. An empty mixture takes every
        stream with equal weight per task. Order: that of the data set.

        Raises:
            UserError: an unknown task, a negative weight, or a task without records.
        """
        counts = _count_by_task(self.streams)
        mixture = dict(mixture) or dict.fromkeys(counts, 1.0)
        known = ", ".join(TRAINING_TASKS)
        for task, weight in mixture.items():
            if task not in set(TRAINING_TASKS):
                raise UserError(f"data.mixture: `{task}` is not a training task ({known})")
            if weight < 0:
                raise UserError(f"data.mixture.{task} is {weight}: weights are 0 or more")
            if weight and not counts.get(task):
                have = ", ".join(f"{name} ({count})" for name, count in counts.items())
                raise UserError(
                    f"data.mixture.{task} is {weight}, but {self.directory} has no `{task}` "
                    f"records; it has {have}"
                )
        chosen = [stream for stream in self.streams if mixture.get(stream.task, 0)]
        if not chosen:
            raise UserError("data.mixture: every weight is 0")
        weights = [mixture[s.task] * s.size / counts[s.task] for s in chosen]
        return chosen, weights


def _count_by_task(streams: Sequence[Stream]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for stream in streams:
        counts[stream.task] = counts.get(stream.task, 0) + stream.size
    return counts
