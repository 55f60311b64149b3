"""The search finds the largest batch that fits with few compilations."""

from __future__ import annotations

import types

import pytest

from unialign_jax.planning import search
from unialign_jax.planning.hardware import GIB
from unialign_jax.planning.memory import Memory
from unialign_jax.planning.topology import parse


def machine(*, per_sample, arguments=1.0, limit=15.75):
    """A compiler whose programs need `arguments + per_sample * size` GiB, and its calls."""
    calls = []

    def attempt(size):
        calls.append(size)
        total = (arguments + per_sample * size) * GIB
        temporaries = per_sample * size * GIB
        fits = total <= limit * GIB
        memory = Memory(fits, limit * GIB, arguments * GIB, temporaries, total, [])
        return types.SimpleNamespace(memory=memory)

    return attempt, calls


@pytest.mark.parametrize(("per_sample", "largest"), [(0.34, 41), (0.7, 20), (2.2, 6), (9.5, 1)])
def test_the_largest_batch_is_found_within_a_sixteenth(per_sample, largest):
    attempt, calls = machine(per_sample=per_sample)
    plan, size = search.largest_batch(attempt)
    assert plan is not None and plan.memory.fits
    assert largest * 15 / 16 <= size <= largest
    assert len(calls) <= 3


@pytest.mark.parametrize("jump", [1, 5, 12, 30])
def test_memory_that_is_no_line_costs_more_compilations_but_is_followed(jump):
    """From `jump` samples on a program needs 4 GiB more; and 1 GiB whatever the batch."""
    attempt, calls = machine(per_sample=0.3, arguments=2.0)

    def with_a_jump(size):
        done = attempt(size)
        memory = done.memory
        more = (1 + 4 * (size >= jump)) * GIB
        total = memory.total + more
        memory = Memory(
            total <= memory.limit,
            memory.limit,
            memory.arguments,
            total - memory.arguments,
            total,
            [],
        )
        return types.SimpleNamespace(memory=memory)

    room = search.HEADROOM * 15.75
    truth = max(n for n in range(1, 60) if 3 + 0.3 * n + 4 * (n >= jump) <= room)
    size = search.largest_batch(with_a_jump)[1]
    assert truth * 15 / 16 - 1 <= size <= truth
    assert len(calls) <= 8


def test_nothing_fits_where_one_sample_does_not():
    assert search.largest_batch(machine(per_sample=20)[0]) == (None, 0)


def test_the_batch_stops_at_the_limit_given():
    assert search.largest_batch(machine(per_sample=0.01)[0], most=32)[1] == 32


@pytest.mark.parametrize(
    ("name", "slices", "sizes"),
    [("v5e:16x16", 1, [32, 64]), ("v5p:4x4x4", 1, [16, 32]), ("v5e:2x2", 1, [4])],
)
def test_meshes_never_shard_over_a_whole_large_slice(name, slices, sizes):
    assert search.meshes(parse(name, slices)) == sizes


def test_overrides_are_those_of_the_command_line():
    candidate = search.Candidate(64, "full", 4, 256)
    assert candidate.overrides == (
        "--config.mesh.fsdp=64 --config.mesh.data=-1 --config.model.remat=full "
        "--config.train.global_batch=1024 --config.train.micro_batches=1"
    )
