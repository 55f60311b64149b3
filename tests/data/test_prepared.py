"""Opening a prepared directory says what is wrong with it, where, and what to do."""

from __future__ import annotations

import json
import shutil

import pytest

from unialign_jax.data.prepared import Prepared, stream_name
from unialign_jax.data.tasks import Task
from unialign_jax.errors import UserError


@pytest.fixture
def copy(prepared_dir, tmp_path):
    """A copy that may be broken."""
    return shutil.copytree(prepared_dir, tmp_path / "copy")


def change(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_streams_follow_the_order_of_the_tasks(prepared_dir):
    streams = Prepared(prepared_dir).streams
    assert [(s.name, s.task, s.conditions, s.size) for s in streams] == [
        ("generate", Task.GENERATE, 0, 7),
        ("edit", Task.EDIT, 1, 5),
        ("compose_1", Task.COMPOSE, 1, 3),
        ("compose_2", Task.COMPOSE, 2, 2),
    ]


def test_a_compose_record_belongs_to_the_stream_of_its_references():
    assert stream_name(Task.COMPOSE, 3) == "compose_3"
    assert stream_name(Task.EDIT, 1) == "edit"


def test_every_record_can_be_read(prepared_dir):
    data = Prepared(prepared_dir)
    for stream in data.streams:
        source = data.source(stream.name)
        items = [source[k].validate() for k in range(len(source))]
        assert len(items) == stream.size
        assert {(i.task, len(i.conditions)) for i in items} == {(stream.task, stream.conditions)}


def test_a_mixture_selects_streams_and_spreads_a_tasks_weight_over_its_streams(prepared_dir):
    streams, weights = Prepared(prepared_dir).select({"generate": 1, "compose": 1, "edit": 0})
    assert [s.name for s in streams] == ["generate", "compose_1", "compose_2"]
    assert weights == pytest.approx([1, 0.6, 0.4])


def test_an_empty_mixture_takes_every_task_equally(prepared_dir):
    streams, weights = Prepared(prepared_dir).select({})
    assert [s.name for s in streams] == ["generate", "edit", "compose_1", "compose_2"]
    assert weights == pytest.approx([1, 1, 0.6, 0.4])


@pytest.mark.parametrize(
    ("mixture", "said"),
    [
        ({"paint": 1}, r"`paint` is not a training task \(generate, edit"),
        ({"caption": 1}, "`caption` is not a training task"),
        ({"perceive": 1}, r"no `perceive` records; it has generate \(7\), edit \(5\)"),
        ({"edit": -1}, r"data\.mixture\.edit is -1"),
        ({"edit": 0}, "every weight is 0"),
    ],
)
def test_a_mixture_that_cannot_be_served_is_refused(prepared_dir, mixture, said):
    with pytest.raises(UserError, match=said):
        Prepared(prepared_dir).select(mixture)


def test_a_folder_that_is_no_data_set_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no data set at .*make one with `unialign prepare`"):
        Prepared(tmp_path / "nothing")


def test_an_unfinished_data_set_says_so(copy):
    (copy / "dataset.json").unlink()
    with pytest.raises(UserError, match="is not finished: run the same"):
        Prepared(copy)


def test_a_missing_shard_is_named(copy):
    path = next((copy / "edit").rglob("*00001-of-00002"))
    path.unlink()
    with pytest.raises(UserError, match=r"edit-train\.array_record-00001-of-00002 is missing"):
        Prepared(copy)


def test_a_cut_shard_is_named_with_its_sizes(copy):
    path = next((copy / "edit").rglob("*00001-of-00002"))
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(
        UserError, match=rf"00001-of-00002 is damaged: 1000 bytes instead of {size}"
    ):
        Prepared(copy)


def test_another_schema_version_is_named(copy):
    change(copy / "dataset.json", schema_version=9)
    with pytest.raises(UserError, match=r"dataset\.json: schema version 9, this program reads 1"):
        Prepared(copy)


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"schema_version": 1}'])
def test_a_damaged_dataset_file_is_named(copy, content):
    (copy / "dataset.json").write_text(content)
    with pytest.raises(UserError, match=r"dataset\.json"):
        Prepared(copy)


def test_wrong_fields_in_the_dataset_file_are_damage(copy):
    change(copy / "dataset.json", streams=[{"name": "edit", "task": "dance", "shards": []}])
    with pytest.raises(UserError, match="is damaged"):
        Prepared(copy)


def test_an_unknown_stream_names_the_known_ones(prepared_dir):
    with pytest.raises(UserError, match="has no `perceive` records; it has generate, edit"):
        Prepared(prepared_dir).source("perceive")


def test_a_data_set_without_tokenizer_says_how_to_get_one(copy):
    assert Prepared(copy).tokenizer_path().name == "tokenizer.json"
    (copy / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="--train-tokenizer"):
        Prepared(copy).tokenizer_path()
