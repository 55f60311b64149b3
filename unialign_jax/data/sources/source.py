"""What `prepare` asks of a source of records, be it files of lines or a world that is drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from unialign_jax.data.tasks import BadItem, Record

if TYPE_CHECKING:
    from unialign_jax.data.tokenizer import TextTokenizer

# Where an item stands, by words of its source, for the log: {"file": "a.jsonl", "line": 7}.
Where = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Note:
    """Something about items that were kept all the same: how many, and the first of them."""

    count: int
    first: str


@dataclasses.dataclass
class Scan:
    """What a first pass over a source found, without touching an image.

    Attributes:
        streams: per stream what names its items, in their order. A slice of it travels to a
            worker process, so it pickles and is small.
        bad: log entries of items that are no records, as `log_entry` makes them.
        identity: what the records depend on; values that JSON can hold.
        notes: what is worth telling about items that are kept, by kind.
    """

    streams: dict[str, Sequence[Any]]
    bad: list[dict[str, Any]]
    identity: tuple[Any, ...]
    notes: dict[str, Note] = dataclasses.field(default_factory=dict)

    @property
    def total(self) -> int:
        """Number of items, the bad ones included."""
        return sum(map(len, self.streams.values())) + len(self.bad)


class Source(Protocol):
    """Where records come from; pickles, since worker processes read from it.

    The records of an item follow from the source and the item alone: what else was read before, or
    by which process, makes no difference.

    Attributes:
        unit: what messages call its items, in the plural.
        images_checked: its images are RGB in PNG or JPEG and their sizes are filled in, since this
            program has just made them: they are stored without being decoded.
    """

    unit: ClassVar[str]
    images_checked: ClassVar[bool]

    def scan(self) -> Scan:
        """Finds all items.

        Raises:
            UserError: the source cannot be read.
        """
        ...

    def read(
        self, stream: str, items: Sequence[Any]
    ) -> Iterator[tuple[Where, Callable[[], Record]]]:
        """For each of the items of a stream, its place and what makes its record.

        The making raises BadItem where there is no record to be had.
        """
        ...

    def check(self, stream: str, items: Sequence[Any]) -> Iterator[dict[str, Any]]:
        """Log entries of the items that can be told to be bad without decoding an image."""
        ...

    def tokenizer(self, vocabulary: int | None) -> TextTokenizer | None:
        """A tokenizer for the texts of all items, with so many entries where a number is given.

        Without one, the source's own choice: None where its texts do not suggest any.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """What was made, for `dataset.json`: "name" and whatever a reader of the data wants."""
        ...


def log_entry(where: Where, error: BadItem) -> dict[str, Any]:
    """A left-out item in the log."""
    return {**where, "kind": error.kind, "reason": error.reason}


def log_order(entry: dict[str, Any]) -> tuple[Any, ...]:
    """Sorts log entries by place."""
    return tuple(value for key, value in entry.items() if key not in ("kind", "reason"))
