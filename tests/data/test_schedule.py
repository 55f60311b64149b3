"""Which records form a step is arithmetic on (seed, step): whole epochs, fixed shares, no state."""

from __future__ import annotations

import collections
import pickle

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from unialign_jax.data.schedule import Curriculum, Schedule, Stream, permuted
from unialign_jax.data.tasks import Task
from unialign_jax.errors import UserError

GENERATE = Stream("generate", Task.GENERATE, 0, 12)
EDIT = Stream("edit", Task.EDIT, 1, 7)
RECORDED_GENERATE = [6, 5, 8, 3, 7, 11, 9, 2, 10, 4, 0, 1]
RECORDED_EDIT = [3, 4, 1, 2, 5, 6, 0, 1, 0, 5, 2, 3]


def schedule(streams=(GENERATE, EDIT), weights=(1, 1), seed=0, batch=4, shuffle=True):
    return Schedule(streams, weights, seed=seed, global_batch=batch, shuffle=shuffle)


def first_records(plan, steps):
    """{stream name: records in order} of the first steps."""
    found = collections.defaultdict(list)
    for step in range(steps):
        found[plan.stream(step).name] += [
            plan.record(step, slot) for slot in range(plan.global_batch)
        ]
    return found


def test_two_equal_tasks_alternate_strictly_as_in_the_reference():
    tasks = [schedule().stream(step).task for step in range(6)]
    assert tasks == [Task.GENERATE, Task.EDIT] * 3


@pytest.mark.parametrize("weights", [(3, 1), (0.75, 0.25), (30, 10)])
def test_weights_are_shares_of_the_steps_spread_evenly(weights):
    names = [schedule(weights=weights).stream(step).name for step in range(400)]
    assert collections.Counter(names) == {"generate": 300, "edit": 100}
    assert all(names[k : k + 4].count("edit") == 1 for k in range(0, 400, 4))


@given(weights=st.lists(st.floats(0.001, 1000), min_size=1, max_size=6))
@example(weights=[190.0, 0.0625, 0.0625, 0.0625])
@settings(max_examples=80, deadline=None)
def test_every_share_is_met_closely_and_none_is_lost(weights):
    streams = [Stream(f"s{k}", Task.GENERATE, 0, 5) for k in range(len(weights))]
    plan = schedule(streams, weights)
    length = len(plan._order)
    assert length <= 10_000
    counts = collections.Counter(plan.stream_index(step) for step in range(length))
    for index, weight in enumerate(weights):
        assert counts[index] >= 1
        # Each stream is counted in thousandths of the heaviest, at least one of them.
        expected = pytest.approx(weight / sum(weights), abs=1e-3 * len(weights))
        assert counts[index] / length == expected


@given(
    size=st.integers(1, 300),
    seed=st.integers(0, 2**63 - 1),
    batch=st.integers(1, 9),
    epoch=st.integers(0, 10**6),
)
@settings(max_examples=80, deadline=None)
def test_every_epoch_holds_every_record_exactly_once(size, seed, batch, epoch):
    plan = schedule([Stream("generate", Task.GENERATE, 0, size)], [1], seed=seed, batch=batch)
    places = range(epoch * size, (epoch + 1) * size)
    assert sorted(plan.record(*divmod(p, batch)) for p in places) == list(range(size))


@given(size=st.integers(1, 10**12), place=st.integers(0, 10**12 - 1))
@settings(max_examples=100, deadline=None)
def test_the_permutation_stays_inside_at_any_size(size, place):
    assert 0 <= permuted(place % size, size, (1, 2, 3, 4, 5, 6, 7, 8)) < size


def test_epochs_and_seeds_have_orders_of_their_own():
    plan = schedule([GENERATE], [1], batch=12)
    epochs = [tuple(plan.record(step, slot) for slot in range(12)) for step in range(20)]
    assert len(set(epochs)) == 20
    other = schedule([GENERATE], [1], batch=12, seed=1)
    assert epochs[0] != tuple(other.record(0, slot) for slot in range(12))


def test_every_record_is_about_equally_often_at_every_place():
    plan = schedule([GENERATE], [1], batch=12)
    counts = np.zeros((12, 12))
    for step in range(1200):
        for slot in range(12):
            counts[slot, plan.record(step, slot)] += 1
    # 100 expected with a deviation of about 10.
    assert counts.min() > 60
    assert counts.max() < 145


def test_without_shuffling_records_come_in_stored_order():
    found = first_records(schedule(shuffle=False), 8)
    assert found["generate"] == [*range(12), *range(4)]
    assert found["edit"] == [*range(7), *range(7), 0, 1]


def test_the_order_is_the_recorded_one():
    # A change here changes what every running training reads after its next restart.
    found = first_records(schedule(seed=1234), 6)
    assert found["generate"] == RECORDED_GENERATE
    assert found["edit"] == RECORDED_EDIT


def test_far_steps_cost_nothing():
    plan = schedule()
    assert 0 <= plan.record(10**12, 3) < 12
    assert plan.position(10**12, 0) == 5 * 10**11 * 4


def test_a_stream_keeps_its_order_whatever_else_is_in_the_mixture():
    alone = [schedule([EDIT], [1]).record(step, 0) for step in range(5)]
    mixed = [schedule().record(2 * step + 1, 0) for step in range(5)]
    assert alone == mixed


def test_replacements_and_choices_are_functions_of_the_place():
    plan, again = schedule(), schedule()
    places = [(s, slot, a) for s in range(5) for slot in range(4) for a in range(1, 4)]
    chosen = [plan.replacement(*place) for place in places]
    assert chosen == [again.replacement(*place) for place in places]
    assert len(set(chosen)) > 5
    picks = [plan.choice(step, slot, 5) for step in range(20) for slot in range(4)]
    assert set(picks) == set(range(5))
    assert plan.choice(0, 0, 0) == plan.choice(0, 0, 1) == 0


def test_it_survives_the_way_to_a_worker():
    plan = schedule(seed=5)
    copy = pickle.loads(pickle.dumps(plan))
    assert first_records(copy, 9) == first_records(plan, 9)


def test_wrong_numbers_are_refused():
    with pytest.raises(UserError, match="seed -1"):
        schedule(seed=-1)
    with pytest.raises(UserError, match="global batch 0"):
        schedule(batch=0)


def test_a_curriculum_is_one_schedule_and_then_the_other() -> None:
    task = Task.GENERATE
    streams = [Stream("generate", task, 0, 7), Stream("edit", Task.EDIT, 1, 11)]
    first = Schedule(streams[:1], [1.0], seed=3, global_batch=4)
    then = Schedule(streams[1:] + streams[:1], [2.0, 1.0], seed=3, global_batch=4)
    both = Curriculum(first, 5, then)
    assert {stream.name for stream in both.streams} == {"generate", "edit"}
    for step in range(12):
        expected = first if step < 5 else then
        assert both.stream(step) == expected.stream(step)
        for slot in range(4):
            assert both.record(step, slot) == expected.record(step, slot)
            assert both.choice(step, slot, 3) == expected.choice(step, slot, 3)
            assert both.replacement(step, slot, 1) == expected.replacement(step, slot, 1)
    assert {both.stream(step).name for step in range(5)} == {"generate"}
    assert {both.stream(step).name for step in range(5, 12)} == {"generate", "edit"}
