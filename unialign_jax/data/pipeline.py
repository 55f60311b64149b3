"""The training input: Grain over a prepared directory, positioned by (seed, step) alone.

`schedule.py` says which records form a step; here they are read, decoded and batched in the
background. There is no iterator state to save: starting again at a step, on any number of hosts
and with any number of workers, gives the same global batches.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
from absl import flags

from unialign_jax.data import prepared
from unialign_jax.data.batches import Batch, Example, collate, make_example
from unialign_jax.data.features import FeatureSource, open_features
from unialign_jax.data.prepare import bad_limit
from unialign_jax.data.records import RecordError, RecordSource
from unialign_jax.data.schedule import Curriculum, Schedule, Stream
from unialign_jax.data.tasks import BadItem, Task
from unialign_jax.data.tokenizer import TextTokenizer
from unialign_jax.errors import UserError

MAX_ATTEMPTS = 32
MOST_THREADS = 8
_ENDLESS = 1 << 48


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The `data` part of a configuration.

    Attributes:
        path: a prepared directory.
        image_size: R, height and width of every image in a batch.
        text_length: L, ids per text.
        mixture: share of the steps of each training task; empty: equal shares of what is there.
        first_mixture: the same for the first `first_steps` steps: a curriculum.
        first_steps: how many steps that is; 0: none.
        workers: processes that read and decode; 0: threads of this one.
        max_bad_share: more distinct bad records than this share of the mixture's records stop
            the run (one is always allowed unless the share is 0).
        shuffle: whether every epoch has an order of its own.
        pixel_scale: a model of pixels works on pixels in [-1, 1] times this.
        features: name of a cache of teacher features in the directory (`unialign cache`); "": none,
            and no intrinsic-modal terms in the loss.
    """

    path: str
    image_size: int = 512
    text_length: int = 256
    mixture: Mapping[str, float] = dataclasses.field(default_factory=dict)
    first_mixture: Mapping[str, float] = dataclasses.field(default_factory=dict)
    first_steps: int = 0
    workers: int = 0
    max_bad_share: float = 0.01
    shuffle: bool = True
    pixel_scale: float = 1.0
    features: str = ""

    def __post_init__(self) -> None:
        limits = {"image_size": 1, "text_length": 2, "workers": 0, "first_steps": 0}
        for name, least in limits.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: at least {least}")
        if not 0 <= self.max_bad_share <= 1:
            raise ValueError(f"max_bad_share is {self.max_bad_share}: a fraction from 0 to 1")


@dataclasses.dataclass
class DataStats:
    """What an iterator has met since it was made.

    Attributes:
        examples: examples handed out (of this process).
        truncated: texts that were cut to the text length.
        replaced: examples that stand in for a bad record.
        bad: bad records by kind, each record once.
    """

    examples: int = 0
    truncated: int = 0
    replaced: int = 0
    bad: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)


@dataclasses.dataclass(frozen=True)
class _Slots:
    """Index -> (step, slot of the global batch), for the slots of one process."""

    start_step: int
    first_slot: int
    per_step: int

    def __len__(self) -> int:
        return _ENDLESS * self.per_step

    def __getitem__(self, index: int) -> tuple[int, int]:
        step, slot = divmod(int(index), self.per_step)
        return self.start_step + step, self.first_slot + slot


@dataclasses.dataclass(frozen=True)
class _Loader:
    """(step, slot) -> example, with replacements for bad records."""

    schedule: Schedule | Curriculum
    sources: Mapping[str, RecordSource]
    tokenizer: TextTokenizer
    image_size: int
    text_length: int
    features: Mapping[str, FeatureSource]

    def __call__(self, place: tuple[int, int]) -> Example:
        step, slot = place
        stream = self.schedule.stream(step).name
        source = self.sources[stream]
        index = self.schedule.record(step, slot)
        bad: list[dict[str, Any]] = []
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                record = source[index]
                caption = self.schedule.choice(step, slot, len(record.captions))
                example = make_example(
                    record,
                    self.tokenizer,
                    image_size=self.image_size,
                    text_length=self.text_length,
                    caption=caption,
                )
                if stream in self.features:
                    # Of the record that is used: after a bad one, that is its replacement.
                    image, text = self.features[stream].get(index, caption)
                    example |= {"image_features": image, "text_features": text}
                return {**example, "bad": bad, "step": step}
            except RecordError as error:
                problem = BadItem("damaged", str(error))
            except BadItem as error:
                problem = BadItem(error.kind, f"{source.where(index)}: {error.reason}")
            entry = {"stream": stream, "record": index, "kind": problem.kind}
            bad.append({**entry, "reason": problem.reason})
            index = self.schedule.replacement(step, slot, attempt)
        raise UserError(
            f"{MAX_ATTEMPTS} records in a row could not be used, the last one: "
            f"{bad[-1]['reason']}. Prepare the data set again"
        )


def _collate(examples: Sequence[Example]) -> Batch:
    return {
        **collate(examples),
        "bad": [entry for example in examples for entry in example["bad"]],
        "truncated": sum(example["truncated"] for example in examples),
        "replaced": sum(bool(example["bad"]) for example in examples),
        "step": examples[0]["step"],
    }


def _plain(value: Any) -> Any:
    """Copies arrays out of the workers' shared memory, which Grain takes back."""
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, np.ndarray) and type(value) is not np.ndarray:
        return np.array(value, subok=False)
    return value


class TrainIterator(Iterator[tuple[int, Task, Batch]]):
    """Yields (step, task, batch) from a start step on, without end; close it after use.

    Attributes:
        stats: what it has met so far.
        schedule: which records form which step.
    """

    def __init__(
        self,
        dataset: grain.IterDataset,
        schedule: Schedule | Curriculum,
        max_bad_share: float,
        bad_log: Path | None,
    ):
        self.schedule = schedule
        self.stats = DataStats()
        self._records = sum(stream.size for stream in schedule.streams)
        self._limit = bad_limit(max_bad_share, self._records)
        self._bad: dict[tuple[str, int], dict[str, Any]] = {}
        self._bad_log = bad_log
        self._iterator = iter(dataset)

    def __enter__(self) -> TrainIterator:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the threads and worker processes."""
        self._iterator.close()

    def __next__(self) -> tuple[int, Task, Batch]:
        batch = {key: _plain(value) for key, value in next(self._iterator).items()}
        step = batch.pop("step")
        self.stats.examples += len(batch["ids"])
        self.stats.truncated += batch.pop("truncated")
        self.stats.replaced += batch.pop("replaced")
        self._note(batch.pop("bad"))
        return step, self.schedule.stream(step).task, batch

    def _note(self, bad: Sequence[dict[str, Any]]) -> None:
        fresh = {(e["stream"], e["record"]): e for e in bad} if bad else {}
        fresh = {key: entry for key, entry in fresh.items() if key not in self._bad}
        if not fresh:
            return
        self._bad.update(fresh)
        self.stats.bad.update(entry["kind"] for entry in fresh.values())
        if self._bad_log is not None:
            lines = [json.dumps(entry, ensure_ascii=False) + "\n" for entry in self._bad.values()]
            prepared.write_text(self._bad_log, "".join(lines))
        if len(self._bad) > self._limit:
            kinds = ", ".join(f"{count} {kind}" for kind, count in self.stats.bad.items())
            last = next(reversed(self._bad.values()))
            raise UserError(
                f"{len(self._bad)} of {self._records} records are bad ({kinds}), data."
                f"max_bad_share allows {self._limit}; the last one: {last['reason']}. "
                "Prepare the data set again or raise data.max_bad_share"
            )


def make_schedule(
    config: DataConfig, data: prepared.Prepared, *, seed: int, global_batch: int
) -> Schedule | Curriculum:
    """Which records form which step of a run.

    Raises:
        UserError: a mixture that the data set cannot serve.
    """

    def of(mixture: Mapping[str, float]) -> Schedule:
        streams, weights = data.select(mixture)
        return Schedule(
            streams, weights, seed=seed, global_batch=global_batch, shuffle=config.shuffle
        )

    then = of(config.mixture)
    if not config.first_steps:
        return then
    return Curriculum(of(config.first_mixture), config.first_steps, then)


def make_iterator(
    config: DataConfig,
    *,
    seed: int,
    start_step: int,
    global_batch: int,
    process_index: int = 0,
    process_count: int = 1,
    tokenizer: TextTokenizer | None = None,
    bad_log: Path | None = None,
) -> TrainIterator:
    """The training input of one process.

    Args:
        config: see `DataConfig`.
        seed: of the order, the captions chosen and the replacements.
        start_step: the first step to yield.
        global_batch: records per step over all processes; a multiple of `process_count`.
        process_index: which slice of every global batch is this process's.
        process_count: number of slices.
        tokenizer: instead of the one in the prepared directory.
        bad_log: a JSONL file for the bad records met (one line each).

    Returns:
        An iterator of (step, task, batch): `batches.collate` describes the batch. Each process
        holds rows process_index * b .. (process_index + 1) * b of the global batch.

    Raises:
        UserError: a data set or features that cannot be read, a mixture that it cannot serve,
            sizes that do not divide; while iterating: too many bad records.
    """
    if process_count < 1 or not 0 <= process_index < process_count:
        raise UserError(f"process {process_index} of {process_count}: no such process")
    if global_batch % process_count:
        raise UserError(
            f"train.global_batch is {global_batch}: it must be a multiple of the "
            f"{process_count} processes"
        )
    data = prepared.Prepared(config.path)
    schedule = make_schedule(config, data, seed=seed, global_batch=global_batch)
    per_step = global_batch // process_count
    loader = _Loader(
        schedule,
        {stream.name: data.source(stream.name) for stream in schedule.streams},
        tokenizer or TextTokenizer.from_file(data.tokenizer_path()),
        config.image_size,
        config.text_length,
        open_features(data, [stream.name for stream in schedule.streams], config.features),
    )
    threads = max(1, min(MOST_THREADS, (os.cpu_count() or 1) // max(1, config.workers)))
    dataset = (
        grain.MapDataset.source(_Slots(start_step, process_index * per_step, per_step))
        .map(loader)
        .batch(per_step, batch_fn=_collate)
        .to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1))
    )
    if config.workers > 0:
        # Grain's workers read absl flags; outside absl's own main nothing has parsed them.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=config.workers, per_worker_buffer_size=2)
        )
    return TrainIterator(dataset, schedule, config.max_bad_share, bad_log)


def first_batch(
    config: DataConfig, task: Task, count: int, tokenizer: TextTokenizer | None = None
) -> Batch:
    """The first `count` records of a task in stored order, for sample grids.

    Raises:
        UserError: the data set has no records of that task or one of them is unusable.
    """
    data = prepared.Prepared(config.path)
    streams: list[Stream] = data.select({task: 1.0})[0]
    source = data.source(streams[0].name)
    tokenizer = tokenizer or TextTokenizer.from_file(data.tokenizer_path())
    examples = []
    for index in range(min(count, len(source))):
        try:
            examples.append(
                make_example(
                    source[index],
                    tokenizer,
                    image_size=config.image_size,
                    text_length=config.text_length,
                )
            )
        except BadItem as error:
            raise UserError(f"{source.where(index)}: {error.reason}") from error
    return collate(examples)
