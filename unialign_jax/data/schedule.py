"""Which records form a step: arithmetic on (seed, step) alone, free of files and iterators.

A data set is a list of *streams*, one per program that the trainer compiles: a task with a
number of condition images. A step takes all its records from one stream. Nothing here depends
on the number of hosts or workers or on what ran before, so a run continues anywhere, on any
number of hosts, from its step alone.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import zlib
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from unialign_jax.data.tasks import Task
from unialign_jax.errors import UserError

LONGEST_CYCLE = 10_000
ROUNDS = 8
_WORD = (1 << 64) - 1


@dataclasses.dataclass(frozen=True)
class Stream:
    """Records that can share a batch: one task, one number of condition images.

    Attributes:
        name: of its data set on disk ("generate", "compose_2", ...).
        task: what it trains.
        conditions: condition images of each record.
        size: number of records.
    """

    name: str
    task: Task
    conditions: int
    size: int


def _whole_weights(weights: Sequence[float]) -> list[int]:
    """Small whole numbers in (nearly) the same proportions; none becomes 0."""
    heaviest = max(weights)
    shares = [
        max(Fraction(weight / heaviest).limit_denominator(1000), Fraction(1, 1000))
        for weight in weights
    ]
    scale = math.lcm(*(share.denominator for share in shares))
    if sum(shares) * scale > LONGEST_CYCLE:
        scale = 1000
    whole = [max(1, round(share * scale)) for share in shares]
    return [value // math.gcd(*whole) for value in whole]


def _cycle(weights: Sequence[int]) -> list[int]:
    """Spreads each index `weights[i]` times over a cycle, evenly; the heavier one leads."""
    credit = [0] * len(weights)
    total = sum(weights)
    order = []
    for _ in range(total):
        credit = [have + weight for have, weight in zip(credit, weights, strict=True)]
        chosen = credit.index(max(credit))
        credit[chosen] -= total
        order.append(chosen)
    return order


def _scramble(value: int) -> int:
    """64 bits to 64 well-mixed bits (the finalizer of SplitMix64, Steele et al. 2014)."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _WORD
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _WORD
    return value ^ (value >> 31)


@functools.lru_cache(maxsize=256)
def _epoch_keys(seed: int, stream: str, epoch: int) -> tuple[int, ...]:
    state = np.random.SeedSequence([seed, 0, zlib.crc32(stream.encode()), epoch])
    return tuple(int(key) for key in state.generate_state(ROUNDS, np.uint64))


def permuted(place: int, size: int, keys: Sequence[int]) -> int:
    """Where a keyed permutation of 0..size-1 sends `place`, in constant time and memory.

    A Feistel network over the next even power of two, walked until it lands inside (Black and
    Rogaway, "Ciphers with arbitrary finite domains", 2002), so that an epoch over a billion
    records needs no table of its order.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = place >> half, place & mask
        for key in keys:
            left, right = right, left ^ (_scramble(right + key & _WORD) & mask)
        place = left << half | right
        if place < size:
            return place


class Schedule:
    """Maps (step, slot of the global batch) to a stream and a record of it.

    Args:
        streams: what there is, in order; equal weights alternate strictly in that order.
        weights: share of the steps of each stream, above 0; any scale.
        seed: 0 to 2**63 - 1.
        global_batch: records per step over all hosts.
        shuffle: whether every epoch of a stream has an order of its own.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        weights: Sequence[float],
        *,
        seed: int,
        global_batch: int,
        shuffle: bool = True,
    ):
        if seed < 0:
            raise UserError(f"seed {seed}: it must not be negative")
        if global_batch < 1:
            raise UserError(f"global batch {global_batch}: at least 1")
        self.streams = tuple(streams)
        self.global_batch = global_batch
        self._seed = seed
        self._weights = _whole_weights(weights)
        self._order = np.asarray(_cycle(self._weights))
        # before[i, k]: steps of stream k among the first i of the cycle.
        chosen = self._order[:, None] == np.arange(len(streams))
        self._before = np.concatenate([np.zeros((1, len(streams)), int), chosen.cumsum(0)])
        self._shuffle = shuffle

    def _mix(self, *numbers: int) -> int:
        """32 well-mixed bits of the seed and the numbers (each 0 or more)."""
        state = np.random.SeedSequence([self._seed, *numbers]).generate_state(1)
        return int(state[0])

    def stream_index(self, step: int) -> int:
        """Index of the stream that step `step` (from 0) trains on."""
        return int(self._order[step % len(self._order)])

    def stream(self, step: int) -> Stream:
        """The stream that step `step` trains on."""
        return self.streams[self.stream_index(step)]

    def position(self, step: int, slot: int) -> int:
        """How many records of this step's stream come before (step, slot), from the start."""
        index = self.stream_index(step)
        cycles, rest = divmod(step, len(self._order))
        steps = cycles * self._weights[index] + int(self._before[rest, index])
        return steps * self.global_batch + slot

    def record(self, step: int, slot: int) -> int:
        """Index within the stream of the record in slot `slot` of step `step`'s global batch.

        Each epoch (a run of `size` positions) holds every record exactly once.
        """
        index = self.stream_index(step)
        size = self.streams[index].size
        epoch, place = divmod(self.position(step, slot), size)
        if not self._shuffle:
            return place
        return permuted(place, size, _epoch_keys(self._seed, self.streams[index].name, epoch))

    def replacement(self, step: int, slot: int, attempt: int) -> int:
        """Index of the record to try when earlier ones failed; `attempt` counts from 1."""
        size = self.stream(step).size
        return self._mix(1, step, slot, attempt) % size

    def choice(self, step: int, slot: int, count: int) -> int:
        """Which of `count` captions this slot uses."""
        return self._mix(2, step, slot) % count if count > 1 else 0


class Curriculum:
    """A schedule whose first steps have a mixture of their own; to callers a `Schedule`.

    Args:
        first: of the steps below `steps`.
        steps: how many there are.
        then: of all later steps, which it counts from the start of the run too.
    """

    def __init__(self, first: Schedule, steps: int, then: Schedule):
        self._first, self._steps, self._then = first, steps, then
        named = {stream.name: stream for stream in (*then.streams, *first.streams)}
        self.streams = tuple(named.values())

    def _at(self, step: int) -> Schedule:
        return self._first if step < self._steps else self._then

    def stream(self, step: int) -> Stream:
        """See `Schedule.stream`."""
        return self._at(step).stream(step)

    def record(self, step: int, slot: int) -> int:
        """See `Schedule.record`."""
        return self._at(step).record(step, slot)

    def replacement(self, step: int, slot: int, attempt: int) -> int:
        """See `Schedule.replacement`."""
        return self._at(step).replacement(step, slot, attempt)

    def choice(self, step: int, slot: int, count: int) -> int:
        """See `Schedule.choice`."""
        return self._at(step).choice(step, slot, count)
