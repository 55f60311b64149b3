"""Global batches follow from (seed, step): not from hosts, workers, restarts or bad records."""

from __future__ import annotations

import collections
import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unialign_jax.data import prepared, records
from unialign_jax.data.pipeline import DataConfig, first_batch, make_iterator
from unialign_jax.data.tasks import SCHEMA_VERSION, Task
from unialign_jax.errors import UserError

MIXTURE = {"generate": 2, "edit": 1, "compose": 1}


@pytest.fixture(scope="session")
def config(prepared_dir):
    return DataConfig(str(prepared_dir), image_size=16, text_length=24, mixture=MIXTURE)


def read(config, steps, *, start=0, batch=4, seed=0, **more):
    """[(step, task, batch)] of one process."""
    with make_iterator(config, seed=seed, start_step=start, global_batch=batch, **more) as iterator:
        return [next(iterator) for _ in range(steps)]


def assert_same(first, second):
    """Two batches are equal in every array and id."""
    assert first.keys() == second.keys()
    for key, value in first.items():
        if isinstance(value, tuple):
            assert len(value) == len(second[key])
            for one, other in zip(value, second[key], strict=True):
                np.testing.assert_array_equal(one, other)
        elif isinstance(value, np.ndarray):
            assert type(second[key]) is np.ndarray
            assert value.dtype == second[key].dtype
            np.testing.assert_array_equal(value, second[key])
        else:
            assert value == second[key]


def assert_same_steps(first, second):
    assert [(step, task) for step, task, _ in first] == [(s, t) for s, t, _ in second]
    for (_, _, one), (_, _, other) in zip(first, second, strict=True):
        assert_same(one, other)


def joined(parts):
    """The global batch from the processes' slices."""
    whole = {}
    for key, value in parts[0].items():
        if key == "ids":
            whole[key] = [item for part in parts for item in part[key]]
        elif isinstance(value, tuple):
            whole[key] = tuple(
                np.concatenate([part[key][k] for part in parts]) for k in range(len(value))
            )
        else:
            whole[key] = None if value is None else np.concatenate([p[key] for p in parts])
    return whole


def test_a_batch_has_the_fields_of_the_objective(config):
    step, task, batch = read(config, 1)[0]
    assert (step, task) == (0, Task.GENERATE)
    assert set(batch) == {
        "target",
        "conditions",
        "instruction_ids",
        "caption_ids",
        "caption_weight",
        "label_mask",
        "ids",
    }
    assert batch["target"].shape == (4, 16, 16, 3)
    assert batch["caption_ids"].shape == (4, 24)
    assert batch["ids"][0].startswith("lines-")


def test_a_step_has_one_task_and_one_number_of_references(config):
    seen = {(task, len(batch["conditions"])) for _, task, batch in read(config, 40)}
    assert seen == {
        (Task.GENERATE, 0),
        (Task.EDIT, 1),
        (Task.COMPOSE, 1),
        (Task.COMPOSE, 2),
    }


@pytest.mark.parametrize("processes", [2, 4])
def test_any_number_of_processes_sees_the_same_global_batches(config, processes):
    whole = read(config, 8)
    parts = [
        read(config, 8, process_index=index, process_count=processes) for index in range(processes)
    ]
    for k, (step, task, batch) in enumerate(whole):
        assert all(part[k][:2] == (step, task) for part in parts)
        assert_same(batch, joined([part[k][2] for part in parts]))


def test_worker_processes_give_the_same_batches(config):
    with_workers = dataclasses.replace(config, workers=2)
    assert_same_steps(read(config, 7, start=3), read(with_workers, 7, start=3))


def test_a_restart_in_the_middle_continues_exactly(config):
    whole = read(config, 12)
    assert_same_steps(whole[5:], read(config, 7, start=5))


def test_a_restart_on_another_number_of_processes_continues_exactly(config):
    later = [read(config, 2, start=5, process_index=i, process_count=2) for i in range(2)]
    for k, (_, _, batch) in enumerate(read(config, 7)[5:]):
        assert_same(batch, joined([part[k][2] for part in later]))


def test_the_seed_changes_the_order(config):
    first, second = ([b["ids"] for _, _, b in read(config, 6, seed=s)] for s in (0, 1))
    assert first != second


def test_no_example_repeats_within_an_epoch(config):
    only = dataclasses.replace(config, mixture={"generate": 1})
    ids = [name for _, _, batch in read(only, 7, batch=4) for name in batch["ids"]]
    for epoch in range(4):
        assert sorted(ids[epoch * 7 : epoch * 7 + 7]) == [f"lines-{k}" for k in range(1, 8)]


@given(
    start=st.integers(0, 10**9),
    seed=st.integers(0, 2**40),
    batch=st.sampled_from([1, 2, 4, 6]),
    processes=st.sampled_from([1, 2]),
)
@settings(max_examples=10, deadline=None)
def test_every_place_yields_a_step_and_its_ids_follow_the_schedule(
    config, start, seed, batch, processes
):
    batch *= processes
    last = processes - 1
    with make_iterator(
        config,
        seed=seed,
        start_step=start,
        global_batch=batch,
        process_index=last,
        process_count=processes,
    ) as iterator:
        step, task, arrays = next(iterator)
        plan = iterator.schedule
    assert step == start
    stream = plan.stream(step)
    source = prepared.Prepared(config.path).source(stream.name)
    slots = range(last * batch // processes, batch)
    assert task == stream.task
    assert arrays["ids"] == [source[plan.record(step, slot)].id for slot in slots]


def test_without_shuffling_records_come_in_stored_order(config):
    plain = dataclasses.replace(config, shuffle=False, mixture={"edit": 1})
    ids = [name for _, _, batch in read(plain, 2, batch=5) for name in batch["ids"]]
    assert ids == [f"lines-{k}" for k in range(8, 13)] * 2


def test_statistics_count_examples_and_cut_texts(config):
    short = dataclasses.replace(config, text_length=3)
    with make_iterator(short, seed=0, start_step=0, global_batch=4) as iterator:
        for _ in range(3):
            next(iterator)
        assert iterator.stats.examples == 12
        assert iterator.stats.truncated >= 12
        assert iterator.stats.replaced == 0


# Records that are bad only when they are read: made past `prepare`, which would refuse them.


def write_set(folder, items, name="generate"):
    """A prepared directory with exactly these records."""
    where = records.stream_directory(folder, name)
    shard = records.write_shard(where / records.shard_name(name, 0, 1), items)
    stream = {"name": name, "task": name, "conditions": 0, "examples": len(items)}
    prepared.write_json(
        folder / "dataset.json",
        {"schema_version": SCHEMA_VERSION, "streams": [{**stream, "shards": [shard._asdict()]}]},
    )
    return DataConfig(str(folder), image_size=16, text_length=24, mixture={"generate": 1})


@pytest.fixture
def spoilt(tmp_path, make_record):
    """20 records; number 3 has no image, number 11 another schema version."""
    items = [make_record(seed=k) for k in range(20)]
    items[3] = make_record(seed=3, target=b"junk")
    items[11] = make_record(seed=11, schema_version=7)
    return write_set(tmp_path / "spoilt", items)


def test_a_bad_record_is_replaced_counted_and_named(spoilt, tokenizer, tmp_path):
    lenient = dataclasses.replace(spoilt, max_bad_share=0.2)
    log = tmp_path / "logs" / "bad_records.jsonl"
    options = {"seed": 0, "start_step": 0, "global_batch": 4, "tokenizer": tokenizer}
    with make_iterator(lenient, **options, bad_log=log) as iterator:
        steps = [next(iterator) for _ in range(15)]
        assert iterator.stats.bad == {"undecodable": 1, "damaged": 1}
        # Three epochs met each of the two at least three times.
        assert iterator.stats.replaced >= 6
    entries = {entry["record"]: entry for entry in map(json.loads, log.read_text().splitlines())}
    assert set(entries) == {3, 11}
    assert "00000-of-00001, record 3: not a readable image" in entries[3]["reason"]
    assert "schema version 7" in entries[11]["reason"]
    names = collections.Counter(name for _, _, batch in steps for name in batch["ids"])
    assert not {"generate-3", "generate-11"} & set(names)
    assert sum(names.values()) == 60


def test_replacements_do_not_depend_on_processes_or_restarts(spoilt, tokenizer):
    lenient = dataclasses.replace(spoilt, max_bad_share=0.2)
    whole = read(lenient, 10, tokenizer=tokenizer)
    parts = [
        read(lenient, 10, tokenizer=tokenizer, process_index=i, process_count=2) for i in range(2)
    ]
    for k, (_, _, batch) in enumerate(whole):
        assert_same(batch, joined([part[k][2] for part in parts]))
    assert_same_steps(whole[4:], read(lenient, 6, start=4, tokenizer=tokenizer))


def test_good_records_keep_their_places_beside_bad_ones(spoilt, tokenizer, make_record, tmp_path):
    sound = write_set(tmp_path / "sound", [make_record(seed=k) for k in range(20)])
    lenient = dataclasses.replace(spoilt, max_bad_share=0.2)
    for (_, _, good), (_, _, bad) in zip(
        read(sound, 10, tokenizer=tokenizer), read(lenient, 10, tokenizer=tokenizer), strict=True
    ):
        for one, other in zip(good["ids"], bad["ids"], strict=True):
            assert one == other or one in ("generate-3", "generate-11")


def test_too_many_bad_records_stop_the_run_with_a_summary(spoilt, tokenizer):
    said = (
        r"2 of 20 records are bad \(.*1 \w+, 1 \w+\), data\.max_bad_share allows 1; "
        r"the last one: .*record \d+: .*Prepare the data set again"
    )
    with pytest.raises(UserError, match=said):
        read(spoilt, 10, tokenizer=tokenizer)


def test_a_set_of_bad_records_only_is_an_error_not_a_hang(tmp_path, make_record, tokenizer):
    broken = write_set(tmp_path, [make_record(seed=k, target=b"junk") for k in range(3)])
    lenient = dataclasses.replace(broken, max_bad_share=1.0)
    with pytest.raises(UserError, match="records in a row could not be used"):
        read(lenient, 1, tokenizer=tokenizer)


def test_a_caption_is_chosen_by_the_place_alone(tmp_path, make_record, tokenizer):
    items = [make_record(seed=0, captions=tuple(f"cat {k}" for k in range(4)))]
    many = write_set(tmp_path, items)
    first = [
        tokenizer.decode(row)
        for _, _, b in read(many, 12, tokenizer=tokenizer)
        for row in b["caption_ids"]
    ]
    assert set(first) == {f"cat {k}" for k in range(4)}
    halves = [
        read(many, 12, tokenizer=tokenizer, process_index=i, process_count=2) for i in range(2)
    ]
    again = [
        tokenizer.decode(row)
        for k in range(12)
        for part in halves
        for row in part[k][2]["caption_ids"]
    ]
    assert first == again


def test_the_first_records_of_a_task_make_a_sample_grid(config):
    batch = first_batch(config, Task.EDIT, 3)
    assert batch["ids"] == ["lines-8", "lines-9", "lines-10"]
    assert len(batch["conditions"]) == 1
    assert len(first_batch(config, Task.GENERATE, 100)["ids"]) == 7
    with pytest.raises(UserError, match="no `perceive` records"):
        first_batch(config, Task.PERCEIVE, 3)


def test_a_sample_grid_of_a_bad_record_names_it(spoilt, tokenizer):
    with pytest.raises(UserError, match="record 3: not a readable image"):
        first_batch(spoilt, Task.GENERATE, 5, tokenizer)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"global_batch": 5, "process_count": 2}, "multiple of the 2 processes"),
        ({"process_index": 2, "process_count": 2}, "process 2 of 2"),
        ({"seed": -3}, "seed -3"),
    ],
)
def test_wrong_numbers_are_refused(config, changes, said):
    call = {"seed": 0, "start_step": 0, "global_batch": 4, **changes}
    with pytest.raises(UserError, match=said):
        make_iterator(config, **call)


@pytest.mark.parametrize(
    "field", [{"image_size": 0}, {"text_length": 1}, {"workers": -1}, {"max_bad_share": 1.5}]
)
def test_impossible_fields_are_refused_by_name(field):
    with pytest.raises(ValueError, match=next(iter(field))):
        DataConfig("path", **field)
