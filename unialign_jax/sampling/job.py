"""Sampling jobs: many items into a folder, resumable, split over processes, repeatable per item.

Item k belongs to shard k mod n. What an item becomes depends on the item, its seed and the call's
settings, never on the number of shards, its neighbours or where a job was stopped; rounding may
differ between batch sizes and devices.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from unialign_jax.data import images
from unialign_jax.data.sources.jsonl import JsonlOptions, check_image, read_image
from unialign_jax.data.tasks import BadItem, Task
from unialign_jax.errors import Interrupted, UserError
from unialign_jax.sampling.items import Item
from unialign_jax.sampling.pipeline import Pipeline
from unialign_jax.sampling.progress import SampleProgress
from unialign_jax.sampling.requests import INPUTS, Request
from unialign_jax.sampling.writers import (
    OK,
    Result,
    ResultsFile,
    is_done,
    join_results,
    read_all,
    write_image,
)

READING_THREADS = 4
ERRORS_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class JobOptions:
    """How a job is done.

    Attributes:
      task: what all of its items are.
      out: the output folder.
      image_root: folder that image paths start from.
      allow_outside: whether they may lead out of it.
      steps: as in `Pipeline`, None is the model's default; so are the next four.
      guidance: see there.
      negative: see there.
      height: see there.
      width: see there.
      batch: items computed at once.
      shard: (i, n), the part of this process and the number of processes.
      resume: whether items that are done stay as they are.
    """

    task: Task
    out: Path
    image_root: Path
    allow_outside: bool = False
    steps: int | None = None
    guidance: float | None = None
    negative: str | None = None
    height: int | None = None
    width: int | None = None
    batch: int = 8
    shard: tuple[int, int] = (0, 1)
    resume: bool = True


@dataclasses.dataclass(frozen=True)
class JobReport:
    """How a job ended.

    Attributes:
      done: items of this shard that are made, those of earlier starts included.
      failed: those that are not.
      skipped: those of `done` that were there already.
      truncated: prompts of this start that were longer than the model's texts.
      seconds: of this start, loading the model included.
      errors: why the first few failed.
    """

    done: int
    failed: int
    skipped: int
    truncated: int
    seconds: float
    errors: tuple[str, ...] = ()


def run_job(
    items: Sequence[Item],
    options: JobOptions,
    load: Callable[[], Pipeline],
    *,
    stop: Callable[[], bool] = lambda: False,
) -> JobReport:
    """Makes the items of this process's shard that are not done.

    Args:
      items: all items of the job.
      options: how.
      load: gives the model; called only where there is something to make, in any process.
      stop: asked before each batch whether to end early.

    Raises:
      Interrupted: `stop` said so; a later call continues.
      UserError: the model cannot be loaded, or the output folder cannot be written.
    """
    begin = time.monotonic()
    index, count = options.shard
    mine = [item for item in items if item.index % count == index]
    ids = {item.id for item in mine}
    before = read_all(options.out) if options.resume else {}
    done = {i for i in ids if i in before and is_done(before[i], options.out)}
    todo = [item for item in mine if item.id not in done]
    bad = [item for item in todo if item.error is not None]
    good = [item for item in todo if item.error is None]

    # What is tried again leaves no old line; results of other jobs in this folder stay.
    file = ResultsFile(options.out, options.shard, keep=lambda r: r.id in done or r.id not in ids)
    wrong = [item.failed(options.task) for item in bad]
    truncated = 0
    try:
        file.append(wrong)
        if _anywhere(bool(good)):
            pipe = load()
            progress = SampleProgress(len(good))
            try:
                for results, cut in _make(good, options, pipe, stop):
                    file.append(results)
                    failed = [result for result in results if result.status != OK]
                    wrong, truncated = wrong + failed, truncated + cut
                    progress.advance(len(results) - len(failed), len(failed))
            finally:
                progress.close()
    finally:
        file.close()
    join_results(options.out, [item.id for item in items])
    return JobReport(
        done=len(mine) - len(wrong),
        failed=len(wrong),
        skipped=len(done),
        truncated=truncated,
        seconds=time.monotonic() - begin,
        errors=tuple(str(result.error) for result in wrong[:ERRORS_SHOWN]),
    )


def _make(
    items: Sequence[Item], options: JobOptions, pipe: Pipeline, stop: Callable[[], bool]
) -> Iterator[tuple[list[Result], int]]:
    """Yields the results of one batch after the other, and how many prompts were cut."""
    made = 0
    with concurrent.futures.ThreadPoolExecutor(READING_THREADS) as pool:
        ready = _ahead(pool, lambda i: _request(i, options, pipe), items, 2 * options.batch)
        for batch in _batches(ready, options.batch):
            if stop():
                raise Interrupted(
                    f"stopped with {made} of {len(items)} items made by this start; they are in "
                    f"{options.out}. The same command makes the rest."
                )
            yield _sample(batch, options, pipe, pool)
            made += len(batch)


def _sample(
    batch: list[tuple[Item, Request | str]],
    options: JobOptions,
    pipe: Pipeline,
    pool: concurrent.futures.Executor,
) -> tuple[list[Result], int]:
    """Makes one batch and writes its images; items that could not be read fail."""
    begin = time.monotonic()
    bad = [item.failed(options.task, why) for item, why in batch if isinstance(why, str)]
    good = [(item, request) for item, request in batch if isinstance(request, Request)]
    made = pipe.sample(
        [request for _, request in good],
        [(item.seed or 0, 0) for item, _ in good],
        steps=options.steps,
        guidance=options.guidance,
        negative=options.negative,
        height=options.height,
        width=options.width,
        batch=options.batch,
    )
    names: list[str] = []
    if INPUTS[options.task].makes_image:
        pairs = zip(good, made, strict=True)
        names = list(pool.map(lambda p: write_image(options.out, p[0][0].id, p[1]), pairs))
    each = (time.monotonic() - begin) / max(len(good), 1)
    results = [
        Result(
            id=item.id,
            task=str(options.task),
            status=OK,
            outputs=(names[i],) if names else (),
            text=None if names else made[i],
            seconds=each,
            seed=item.seed,
        )
        for i, (item, _) in enumerate(good)
    ]
    return results + bad, sum(request.truncated for _, request in good)


def _request(item: Item, options: JobOptions, pipe: Pipeline) -> Request | str:
    """An item ready for the device, or why it cannot be made."""
    try:
        return pipe.request(options.task, item.text, read_images(item, options))
    except BadItem as error:
        return f"`image`: {error.reason}"
    except UserError as error:
        return str(error)


def read_images(item: Item, options: JobOptions) -> list[Any]:
    """The decoded images of an item.

    Raises:
      BadItem: one is missing, outside of the image root, not an image, or too large.
    """
    rules = JsonlOptions(allow_outside=options.allow_outside)
    return [images.decode(read_image(options.image_root, name, rules)) for name in item.images]


def check_items(items: Sequence[Item], options: JobOptions) -> list[Item]:
    """The items, with the error of those whose image files are not there."""
    rules = JsonlOptions(allow_outside=options.allow_outside)

    def checked(item: Item) -> Item:
        try:
            for name in item.images:
                check_image(options.image_root, name, rules)
        except BadItem as error:
            return dataclasses.replace(item, error=f"{item.where}: `image`: {error.reason}")
        return item

    return [checked(item) for item in items]


def _ahead(
    pool: concurrent.futures.Executor,
    work: Callable[[Item], Any],
    items: Sequence[Item],
    ahead: int,
) -> Iterator[tuple[Item, Any]]:
    """(item, work(item)) in order, with up to `ahead` items worked on before they are wanted."""
    rest = iter(items)
    waiting = collections.deque((i, pool.submit(work, i)) for i in itertools.islice(rest, ahead))
    while waiting:
        item, future = waiting.popleft()
        waiting.extend((i, pool.submit(work, i)) for i in itertools.islice(rest, 1))
        yield item, future.result()


def _batches(
    items: Iterator[tuple[Item, Request | str]], size: int
) -> Iterator[list[tuple[Item, Request | str]]]:
    """Groups with the same number of images, each a full batch until the end is near.

    Items that failed ride along with the next group that leaves.
    """
    groups: dict[int, list[tuple[Item, Request | str]]] = {}
    bad: list[tuple[Item, Request | str]] = []
    for item, request in items:
        if isinstance(request, str):
            bad.append((item, request))
            continue
        group = groups.setdefault(len(request.images), [])
        group.append((item, request))
        if len(group) == size:
            yield bad + groups.pop(len(request.images))
            bad = []
    for group in groups.values():
        yield bad + group
        bad = []
    if bad:
        yield bad


def _anywhere(needed: bool) -> bool:
    """Whether any JAX process needs the model: checkpoints are read by all of them together."""
    if jax.process_count() == 1:
        return needed
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.array(needed)).any())


def process_shard() -> tuple[int, int]:
    """This process's part of a job of several JAX processes; (0, 1) where there is only one."""
    return jax.process_index(), jax.process_count()
