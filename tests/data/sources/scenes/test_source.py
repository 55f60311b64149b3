"""Scenes go through `prepare` like lines do; example i of a stream is always the same."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
import re

import pytest

from unialign_jax.data import images
from unialign_jax.data.prepare import PrepareOptions, fingerprint, prepare, survey
from unialign_jax.data.prepared import Prepared
from unialign_jax.data.shards import StoreOptions, finish_record
from unialign_jax.data.sources.scenes import drawing
from unialign_jax.data.sources.scenes.language import parse_caption
from unialign_jax.data.sources.scenes.source import ScenesSource, spread
from unialign_jax.data.sources.scenes.world import LEVELS, scene_is_held_out
from unialign_jax.data.tasks import TRAINING_TASKS, Task
from unialign_jax.data.tokenizer import UNKNOWN, TextTokenizer
from unialign_jax.errors import UsageError


def scenes(total=60, level="demo", **more):
    return ScenesSource(level, spread(total), **more)


def records(source, stream=None):
    """Every record by stream, as a worker would make them."""
    streams = source.scan().streams
    return {
        name: [make() for _, make in source.read(name, items)]
        for name, items in streams.items()
        if stream in (None, name)
    }


def texts(record):
    return [record.instruction, *record.captions, *(turn.text for turn in record.turns)]


def files(out):
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


@pytest.mark.parametrize(("level", "most"), [("demo", 2), ("full", 3)])
def test_a_total_is_spread_over_the_tasks_and_references(level, most):
    found = scenes(62, level).scan()
    composed = [f"compose_{k}" for k in range(1, most + 1)]
    assert list(found.streams) == ["generate", "edit", "perceive", *composed, "answer"]
    assert found.total == 62
    sizes = {name: len(items) for name, items in found.streams.items()}
    assert sorted({sizes[task] for task in ("generate", "edit", "perceive", "answer")}) == [12, 13]
    assert max(sizes[name] for name in composed) - min(sizes[name] for name in composed) <= 1
    assert (found.bad, found.notes) == ([], {})


def test_tasks_without_records_have_no_stream():
    source = ScenesSource("demo", {Task.EDIT: 3, Task.COMPOSE: 1, Task.ANSWER: 0})
    assert {name: len(items) for name, items in source.scan().streams.items()} == {
        "edit": 3,
        "compose_2": 1,
    }


@pytest.mark.parametrize("level", ["demo", "full"])
def test_every_record_is_valid_and_of_its_stream_and_ids_are_unique(level):
    source = scenes(70, level)
    made = records(source)
    for name, items in made.items():
        task, _, references = name.partition("_")
        for item in items:
            assert item.validate().task == task
            assert len(item.conditions) == int(
                references or TRAINING_TASKS[item.task].conditions[0]
            )
            assert (item.height, item.width) == (source.side, source.side)
    ids = [item.id for items in made.values() for item in items]
    assert len(set(ids)) == len(ids) == 70


def test_images_stored_undecoded_are_what_a_check_would_have_stored():
    for item in itertools.chain(*records(scenes(30)).values()):
        assert finish_record(item, StoreOptions()) == item
        assert images.open_image(item.target).mode == "RGB"


@pytest.mark.parametrize("level", ["demo", "full"])
def test_no_held_out_combination_occurs(level):
    made = records(scenes(200, level))
    described = [item.captions[0] for items in made.values() for item in items if item.captions]
    assert len(described) == 160
    for caption in described:
        scene = parse_caption(caption, LEVELS[level])
        assert scene is not None
        assert not scene_is_held_out(scene)


def test_an_example_does_not_depend_on_what_else_is_made():
    many = records(scenes(100), "edit")["edit"]
    few = ScenesSource("demo", {Task.EDIT: 12})
    assert records(few)["edit"] == many[:12]
    (_, make), *_ = few.read("edit", range(7, 9))
    assert make() == many[7]
    assert records(ScenesSource("demo", {Task.EDIT: 12}, seed=1))["edit"] != many[:12]
    assert records(ScenesSource("demo", {Task.EDIT: 12}, pixels=32))["edit"] != many[:12]


def test_a_source_and_its_items_travel_to_a_worker_as_a_few_bytes():
    source = scenes(100_000)
    found = source.scan()
    sent = pickle.dumps((source, found.streams["edit"][512:1024]))
    assert len(sent) < 600
    again, items = pickle.loads(sent)
    assert (again, items) == (source, range(512, 1024))


def test_the_fingerprint_follows_what_is_made_and_how_it_is_drawn(monkeypatch):
    store = StoreOptions()
    first = scenes()
    others = [
        scenes(seed=1),
        scenes(pixels=32),
        scenes(61),
        scenes(level="full"),
        dataclasses.replace(first, counts={Task.EDIT: 60}),
    ]
    codes = [fingerprint(source.scan(), store) for source in (first, *others)]
    assert len(set(codes)) == len(codes)
    assert codes[0] == fingerprint(scenes().scan(), store)
    monkeypatch.setitem(drawing.BACKGROUNDS, "black", (17, 16, 16))
    assert codes[0] != fingerprint(scenes().scan(), store)


def test_workers_and_restarts_do_not_change_a_byte(tmp_path):
    source, store = scenes(24), StoreOptions(shards=2)
    summary = prepare(source, tmp_path / "a", PrepareOptions(store))
    assert summary.counts == {"generate": 4, "edit": 5, "perceive": 5, "compose": 5, "answer": 5}
    assert (summary.bad, summary.notes, summary.shards_written) == ({}, {}, 12)
    prepare(source, tmp_path / "b", PrepareOptions(store, workers=2))
    assert files(tmp_path / "a") == files(tmp_path / "b")
    for shard in (tmp_path / "a").rglob("*array_record-00001*"):
        shard.unlink()
    assert prepare(source, tmp_path / "a", PrepareOptions(store)).shards_written == 6
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_the_data_set_says_what_was_made(tmp_path):
    prepare(scenes(12, seed=7), tmp_path, PrepareOptions())
    data = Prepared(tmp_path)
    assert data.info["source"] == {"name": "scenes", "level": "demo", "pixels": 16, "seed": 7}
    assert [s.name for s in data.streams] == [
        "generate",
        "answer",
        "edit",
        "perceive",
        "compose_1",
        "compose_2",
    ]
    assert data.source("answer")[1].turns[1].is_answer
    assert (tmp_path / "bad_records.jsonl").read_text() == ""


def test_a_survey_draws_nothing(monkeypatch):
    source = scenes(1000)
    monkeypatch.setattr(ScenesSource, "read", None)
    assert survey(source).counts == dict.fromkeys(TRAINING_TASKS, 200)


@pytest.mark.parametrize("level", ["demo", "full"])
def test_every_word_is_one_token_and_every_text_comes_back(level, tmp_path):
    tokenizer = scenes(level=level).tokenizer(None)
    tokenizer.save(tmp_path / "tokenizer.json")
    tokenizer = TextTokenizer.from_file(tmp_path / "tokenizer.json")
    unknown = tokenizer._id_of(UNKNOWN)
    said = set(
        itertools.chain(*map(texts, itertools.chain(*records(scenes(1000, level)).values())))
    )
    assert len(said) > 500
    for text in said:
        pieces = tokenizer.pieces(text)
        assert unknown not in pieces, text
        assert len(pieces) == len(re.findall(r"\w+|[^\w\s]", text))
        assert tokenizer.decode(pieces) == text.strip()
    assert tokenizer.vocab_size <= 128
    assert scenes().tokenizer(256).vocab_size == 256


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"level": "hard"}, "no level 'hard' of the scenes; there are demo, full"),
        ({"pixels": 17}, "17 pixels: level demo is drawn at 16, 32, 64"),
        ({"level": "full", "pixels": 16}, "16 pixels: level full is drawn at 32, 64, 128"),
        ({"seed": -1}, "seed -1: 0 or more"),
    ],
)
def test_what_the_world_does_not_have_is_a_wrong_call(change, said):
    with pytest.raises(UsageError, match=said):
        scenes(**change)
