"""The scenes as a source of records: which examples a data set holds, and making some of them."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from unialign_jax.data.prepared import stream_name
from unialign_jax.data.sources.scenes.examples import (
    Example,
    all_texts,
    make_example,
    target_image,
    to_record,
)
from unialign_jax.data.sources.scenes.world import Level, level_named
from unialign_jax.data.sources.source import Scan, Where
from unialign_jax.data.tasks import TRAINING_TASKS, Record, Task
from unialign_jax.data.tokenizer import TextTokenizer, train_tokenizer, word_tokenizer
from unialign_jax.errors import UsageError

# So many examples of each stream are looked at to tell whether the world itself has changed.
PROBES = 8


def spread(total: int, tasks: Sequence[Task] = tuple(TRAINING_TASKS)) -> dict[Task, int]:
    """`total` records in equal parts over tasks."""
    ends = [total * k // len(tasks) for k in range(len(tasks) + 1)]
    return {task: ends[k + 1] - ends[k] for k, task in enumerate(tasks)}


@dataclasses.dataclass(frozen=True)
class ScenesSource:
    """Examples 0, 1, ... of each stream, all on the training side of the held-out split.

    Example i of a stream follows from level, seed, stream and i alone.

    Attributes:
        level: name of the world's level.
        counts: records of each training task; those of `compose` in equal parts for each number
            of references.
        pixels: height and width of the images; None: the level's default.
        seed: of all examples.

    Raises:
        UsageError: no such level, a size that it does not have, or a negative seed.
    """

    level: str
    counts: Mapping[Task, int]
    pixels: int | None = None
    seed: int = 0

    unit: ClassVar[str] = "examples"
    images_checked: ClassVar[bool] = True

    def __post_init__(self) -> None:
        allowed = self.world.pixels
        if self.side not in allowed:
            sizes = ", ".join(map(str, allowed))
            raise UsageError(f"{self.side} pixels: level {self.level} is drawn at {sizes}")
        if self.seed < 0:
            raise UsageError(f"seed {self.seed}: 0 or more")

    @property
    def world(self) -> Level:
        """The level by its name."""
        return level_named(self.level)

    @property
    def side(self) -> int:
        """Height and width of the images."""
        return self.world.pixels[0] if self.pixels is None else self.pixels

    def scan(self) -> Scan:
        """Counts; nothing is drawn but a few examples that tell this world from a changed one."""
        streams: dict[str, range] = {}
        for task, count in self.counts.items():
            least, most = TRAINING_TASKS[task].conditions
            most = min(most, self.world.most_references)
            parts = most - least + 1
            for k in range(parts):
                size = count * (k + 1) // parts - count * k // parts
                streams[stream_name(task, least + k)] = range(size)
        streams = {name: items for name, items in streams.items() if items}
        drawn = hashlib.sha256()
        for name, items in streams.items():
            for index in items[:PROBES]:
                example = self._example(name, index)
                drawn.update(repr(example).encode())
                drawn.update(target_image(example, self.side).tobytes())
        sizes = [[name, len(items)] for name, items in streams.items()]
        identity = ("scenes", self.level, self.side, self.seed, sizes, drawn.hexdigest())
        return Scan(dict(streams), [], identity)

    def _example(self, stream: str, index: int) -> Example:
        task, _, references = stream.partition("_")
        return make_example(
            self.world,
            Task(task),
            index,
            seed=self.seed,
            held_out=False,
            references=int(references) if references else None,
        )

    def _record(self, stream: str, index: int) -> Record:
        return to_record(self._example(stream, index), self.side)

    def read(
        self, stream: str, items: Sequence[int]
    ) -> Iterator[tuple[Where, Callable[[], Record]]]:
        """The examples as records; see `Source.read`."""
        for index in items:
            where = {"stream": stream, "example": index}
            yield where, functools.partial(self._record, stream, index)

    def check(self, stream: str, items: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Nothing: every example can be drawn."""
        del stream, items
        return iter(())

    def tokenizer(self, vocabulary: int | None) -> TextTokenizer:
        """A token for every word of the level; with `vocabulary`, byte pairs."""
        texts = all_texts(self.world)
        return word_tokenizer(texts) if vocabulary is None else train_tokenizer(texts, vocabulary)

    def describe(self) -> dict[str, Any]:
        """What it takes to make more examples of the same kind, for instance to evaluate."""
        return {"name": "scenes", "level": self.level, "pixels": self.side, "seed": self.seed}
