"""Records on disk are an ordinary TFDS data set, written whole or not at all."""

from __future__ import annotations

import io
import os
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from unialign_jax.data import records
from unialign_jax.data.tasks import TRAINING_TASKS, BadItem, Record, Task, Turn
from unialign_jax.errors import UserError


@pytest.fixture
def stored(tmp_path, make_record):
    """(folder, shards, records) of a stream with two shards of 3 and 2 edit records."""
    items = [make_record(Task.EDIT, seed) for seed in range(5)]
    folder = records.stream_directory(tmp_path, "edit")
    shards = [
        records.write_shard(folder / records.shard_name("edit", 0, 2), items[:3]),
        records.write_shard(folder / records.shard_name("edit", 1, 2), items[3:]),
    ]
    records.write_metadata(folder, "edit", shards)
    return folder, shards, items


@pytest.mark.parametrize("task", TRAINING_TASKS)
def test_a_record_of_every_task_comes_back(make_record, task):
    record = make_record(task)
    assert records.deserialize(records.serialize(record)) == record


text = st.text(st.characters(codec="utf-8"), max_size=20)


@given(
    captions=st.lists(text, max_size=3),
    conditions=st.lists(st.binary(max_size=50), max_size=3),
    turns=st.lists(st.builds(Turn, text, st.booleans()), max_size=4),
    words=text,
    target=st.binary(max_size=100),
)
@settings(max_examples=60, deadline=None)
def test_any_text_and_bytes_come_back(captions, conditions, turns, words, target):
    record = Record(
        id=words,
        task=Task.COMPOSE,
        target=target,
        height=3,
        width=2**20,
        conditions=tuple(conditions),
        instruction=words,
        captions=tuple(captions),
        turns=tuple(turns),
        map_kind=words,
    )
    assert records.deserialize(records.serialize(record)) == record


def test_both_feature_descriptions_write_the_same_bytes(make_record):
    record = make_record(Task.EDIT)
    fields = {**vars(record), "task": "edit", "turns": [], "captions": list(record.captions)}
    fields["target"] = io.BytesIO(record.target)
    fields["conditions"] = [io.BytesIO(data) for data in record.conditions]
    theirs = records.features(images=True).serialize_example(fields)
    example = tf_example_pb2.Example
    assert example.FromString(records.serialize(record)) == example.FromString(theirs)


def test_tfds_reads_the_folder_with_decoded_images(stored):
    folder, _, items = stored
    builder = tfds.builder_from_directory(folder)
    assert builder.info.splits["train"].num_examples == 5
    assert builder.info.splits["train"].shard_lengths == [3, 2]
    source = builder.as_data_source("train")
    for item, example in zip(items, source, strict=True):
        assert example["id"].decode() == item.id
        assert example["captions"] == [b"picture of a cat"]
        pixels = np.asarray(Image.open(io.BytesIO(item.target)))
        np.testing.assert_array_equal(example["target"], pixels)
        assert example["conditions"][0].shape == (20, 26, 3)


def test_tfds_finds_the_stream_by_name(stored):
    folder, _, items = stored
    root = folder.parent.parent
    source = tfds.data_source("edit", data_dir=root, split="train[3:]")
    assert [example["id"].decode() for example in source] == [item.id for item in items[3:]]


def test_our_reader_gives_the_records_in_order_and_encoded(stored):
    folder, shards, items = stored
    source = records.RecordSource(folder, shards)
    assert len(source) == 5
    assert [source[k] for k in (4, 0, 3, 2, 1)] == [items[k] for k in (4, 0, 3, 2, 1)]
    assert [record.id for record in map(pickle.loads(pickle.dumps(source)).__getitem__, (1, 4))]
    for outside in (-1, 5):
        with pytest.raises(IndexError):
            source[outside]


def test_an_empty_shard_among_others_is_skipped(tmp_path, make_record):
    folder = records.stream_directory(tmp_path, "generate")
    parts = ([make_record(seed=1)], [], [make_record(seed=2)])
    shards = [
        records.write_shard(folder / records.shard_name("generate", k, 3), part)
        for k, part in enumerate(parts)
    ]
    records.write_metadata(folder, "generate", shards)
    source = records.RecordSource(folder, shards)
    assert [source[k].id for k in range(len(source))] == ["generate-1", "generate-2"]
    theirs = tfds.builder_from_directory(folder).as_data_source("train")
    assert [example["id"] for example in theirs] == [b"generate-1", b"generate-2"]


class FullDisk:
    """An ArrayRecord writer whose disk is full after the first record."""

    def __init__(self, path: str, options: str):
        self.records = 0
        with open(path, "wb") as file:
            file.write(b"half")

    def write(self, data: bytes) -> None:
        self.records += 1
        if self.records > 1:
            raise RuntimeError("write() failed: No space left on device")

    def close(self) -> None:
        raise RuntimeError("close() failed: No space left on device")


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, make_record, monkeypatch):
    monkeypatch.setattr(records.array_record_module, "ArrayRecordWriter", FullDisk)
    path = tmp_path / records.shard_name("generate", 0, 1)
    for count in (1, 2):
        with pytest.raises(UserError, match=r"cannot write .*No space left.* Free some space"):
            records.write_shard(path, [make_record()] * count)
        assert list(tmp_path.iterdir()) == []


def test_an_error_in_the_records_is_not_blamed_on_the_disk(tmp_path, make_record):
    def failing():
        yield make_record()
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        records.write_shard(tmp_path / records.shard_name("generate", 0, 1), failing())
    assert list(tmp_path.iterdir()) == []


def test_a_kill_while_writing_leaves_nothing_under_the_final_name(tmp_path, make_record):
    path = tmp_path / records.shard_name("generate", 0, 1)

    def killed():
        yield make_record()
        assert not path.exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        records.write_shard(path, killed())
    assert not path.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder_is_named(tmp_path, make_record):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot write"):
        records.write_shard(tmp_path / "deeper" / "x", [make_record()])


def test_a_file_in_the_way_is_named(tmp_path, make_record):
    (tmp_path / "generate").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*generate.*Free some space"):
        records.write_shard(tmp_path / "generate" / "x", [make_record()])


def test_a_damaged_record_is_named_and_the_others_still_read(tmp_path, make_record):
    folder = records.stream_directory(tmp_path, "generate")
    items = [make_record(seed=k, target=os.urandom(50_000)) for k in range(8)]
    shard = records.write_shard(folder / records.shard_name("generate", 0, 1), items)
    path = folder / shard.file
    data = bytearray(path.read_bytes())
    place = data.index(items[5].target[100:120])
    data[place : place + 200] = bytes(200)
    path.write_bytes(data)
    source = records.RecordSource(folder, [shard])
    with pytest.raises(records.RecordError, match=r"00000-of-00001, record 5: .*prepare") as caught:
        source[5]
    assert isinstance(caught.value, UserError)
    assert [source[k] for k in (4, 6)] == [items[4], items[6]]


def test_a_cut_file_is_named(stored):
    folder, shards, _ = stored
    path = folder / shards[1].file
    path.write_bytes(path.read_bytes()[:-100])
    source = records.RecordSource(folder, shards)
    assert source[2].id == "edit-2"
    with pytest.raises(records.RecordError, match=r"00001-of-00002, record 0: "):
        source[3]


def test_another_schema_version_is_named_with_the_remedy(tmp_path, make_record):
    folder = records.stream_directory(tmp_path, "generate")
    items = [make_record(schema_version=2)]
    shard = records.write_shard(folder / records.shard_name("generate", 0, 1), items)
    with pytest.raises(records.RecordError, match=r"schema version 2.*prepare the data set again"):
        records.RecordSource(folder, [shard])[0]


@pytest.mark.parametrize("data", [b"", b"garbage", b"\x00" * 40, b"\x0a\x00"])
def test_bytes_that_are_no_record_are_damaged(data):
    with pytest.raises(BadItem, match="damaged"):
        records.deserialize(data)
