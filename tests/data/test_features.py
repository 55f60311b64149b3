"""Teacher features in batches: each record's own, whatever brought the record there."""

from __future__ import annotations

import dataclasses
import pickle
import shutil

import numpy as np
import pytest

from tests.caching.stand_in_teacher import StandInTeacher
from unialign_jax.caching.parts import CacheOptions
from unialign_jax.caching.writer import write_cache
from unialign_jax.data import prepared, records
from unialign_jax.data.features import FORMAT, FeatureCache, cache_directory
from unialign_jax.data.pipeline import DataConfig, make_iterator
from unialign_jax.data.prepared import Prepared
from unialign_jax.data.tasks import SCHEMA_VERSION, Task
from unialign_jax.data.tokenizer import TextTokenizer
from unialign_jax.errors import UserError

TEACHER = StandInTeacher(pixels=16)


@pytest.fixture(scope="module")
def directory(prepared_dir, tmp_path_factory):
    """The prepared directory with features `exact` (float32), `small` (float16) and `grid`."""
    folder = tmp_path_factory.mktemp("cached") / "data"
    shutil.copytree(prepared_dir, folder)
    data = Prepared(folder)
    write_cache(data, TEACHER, "exact", CacheOptions(dtype="float32"))
    write_cache(data, TEACHER, "small", CacheOptions())
    write_cache(data, TEACHER, "grid", CacheOptions(grid=True, dtype="float32"))
    return folder


@pytest.fixture(scope="module")
def config(directory):
    return DataConfig(str(directory), image_size=16, text_length=48, features="exact")


def read(config, steps, *, start=0, seed=0, **more):
    """The batches of one process."""
    call = {"seed": seed, "start_step": start, "global_batch": 4, **more}
    with make_iterator(config, **call) as iterator:
        return [next(iterator)[2] for _ in range(steps)]


def assert_own(batch, tokenizer):
    """Every row's features are the teacher's on that row's image and caption."""
    np.testing.assert_array_equal(batch["image_features"], TEACHER.image_features(batch["target"]))
    texts = tokenizer.decode_batch(batch["caption_ids"])
    np.testing.assert_array_equal(batch["text_features"], TEACHER.text_features(texts))


@pytest.mark.parametrize("workers", [0, 2])
def test_every_row_has_the_features_of_its_own_image_and_caption(config, directory, workers):
    own = TextTokenizer.from_file(directory / "tokenizer.json")
    batches = read(dataclasses.replace(config, workers=workers), 8)
    assert {len(batch["conditions"]) for batch in batches} == {0, 1, 2}
    for batch in batches:
        assert batch["image_features"].shape == batch["text_features"].shape == (4, 4)
        assert type(batch["image_features"]) is np.ndarray
        assert_own(batch, own)


def test_the_same_seed_and_step_give_the_same_features(config):
    whole = read(config, 8)
    later = read(config, 4, start=4)
    halves = [read(config, 8, process_index=k, process_count=2) for k in range(2)]
    for key in ("image_features", "text_features"):
        for k, batch in enumerate(whole):
            both = np.concatenate([half[k][key] for half in halves])
            np.testing.assert_array_equal(batch[key], both)
        for one, other in zip(whole[4:], later, strict=True):
            np.testing.assert_array_equal(one[key], other[key])


def test_without_features_the_batch_is_what_it_was(config):
    plain = dataclasses.replace(config, features="")
    for one, other in zip(read(plain, 4), read(config, 4), strict=True):
        assert set(other) - set(one) == {"image_features", "text_features"}
        np.testing.assert_array_equal(one["target"], other["target"])
        np.testing.assert_array_equal(one["caption_ids"], other["caption_ids"])


def test_features_may_be_a_grid_or_half_as_wide_on_disk(config):
    exact = read(config, 2)
    for batch, same in zip(
        read(dataclasses.replace(config, features="grid"), 2), exact, strict=True
    ):
        assert batch["image_features"].shape == (4, 2, 2, 4)
        wanted = TEACHER.image_features(same["target"], grid=True)
        np.testing.assert_array_equal(batch["image_features"], wanted)
    for batch, same in zip(
        read(dataclasses.replace(config, features="small"), 2), exact, strict=True
    ):
        assert batch["image_features"].dtype == np.float16
        np.testing.assert_allclose(batch["image_features"], same["image_features"], rtol=1e-3)


# ---------------------------------------------------------------------- records that lack something


def write_set(folder, items, name="generate"):
    """A prepared directory with exactly these records, and their features."""
    where = records.stream_directory(folder, name)
    shard = records.write_shard(where / records.shard_name(name, 0, 1), items)
    stream = {"name": name, "task": name, "conditions": 0, "examples": len(items)}
    prepared.write_json(
        folder / "dataset.json",
        {"schema_version": SCHEMA_VERSION, "streams": [{**stream, "shards": [shard._asdict()]}]},
    )
    write_cache(Prepared(folder), TEACHER, "exact", CacheOptions(dtype="float32"))
    return DataConfig(
        str(folder), image_size=16, text_length=24, features="exact", max_bad_share=0.3
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_replaced_record_brings_its_own_features(tmp_path, make_record, tokenizer, workers):
    items = [make_record(seed=k, captions=(f"cat {k}", f"dog {k}")) for k in range(10)]
    for bad in (3, 4):
        items[bad] = make_record(seed=bad, target=b"junk")
    config = dataclasses.replace(write_set(tmp_path, items), workers=workers)
    with make_iterator(
        config, seed=0, start_step=0, global_batch=4, tokenizer=tokenizer
    ) as iterator:
        batches = [next(iterator)[2] for _ in range(10)]
        assert iterator.stats.replaced >= 8
    for batch in batches:
        assert_own(batch, tokenizer)


def test_the_features_are_those_of_the_caption_that_was_chosen(tmp_path, make_record, tokenizer):
    config = write_set(tmp_path, [make_record(captions=("cat", "a longer cat", "a cat or a dog"))])
    seen = set()
    for batch in read(config, 8, tokenizer=tokenizer):
        assert_own(batch, tokenizer)
        seen |= set(tokenizer.decode_batch(batch["caption_ids"]))
    assert seen == {"cat", "a longer cat", "a cat or a dog"}


def test_a_record_without_caption_has_zeros_and_no_weight(tmp_path, make_record, tokenizer):
    config = write_set(tmp_path, [make_record(captions=()), make_record(seed=1)])
    batch = read(config, 1, tokenizer=tokenizer)[0]
    for weight, features in zip(batch["caption_weight"], batch["text_features"], strict=True):
        assert (weight == 0) == (features == 0).all()
    assert set(batch["caption_weight"]) == {0, 1}


def test_questions_have_no_features(tmp_path, make_record, tokenizer):
    config = write_set(tmp_path, [make_record(seed=k) for k in range(4)])
    data = Prepared(tmp_path)
    where = records.stream_directory(tmp_path, "answer")
    items = [make_record(Task.ANSWER, seed=k) for k in range(4)]
    shard = records.write_shard(where / records.shard_name("answer", 0, 1), items)
    stream = {"name": "answer", "task": "answer", "conditions": 0, "examples": 4}
    streams = [*data.info["streams"], {**stream, "shards": [shard._asdict()]}]
    prepared.write_json(tmp_path / "dataset.json", {**data.info, "streams": streams})
    write_cache(Prepared(tmp_path), TEACHER, "both", CacheOptions())
    batches = read(dataclasses.replace(config, features="both"), 4, tokenizer=tokenizer)
    assert {batch["label_mask"] is None: "text_features" in batch for batch in batches} == {
        True: True,
        False: False,
    }


# ---------------------------------------------------------------------- what can be wrong with it


@pytest.fixture
def cached(directory, tmp_path):
    """A copy of the data set and its features, to spoil."""
    shutil.copytree(directory, tmp_path / "data")
    return tmp_path / "data"


def edit_json(path, **values):
    prepared.write_json(path, {**prepared.read_json(path), **values})


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda d, c: shutil.rmtree(c), r"no features of that name; there are grid, small: run"),
        (lambda d, c: shutil.rmtree(c.parent), r"no features of that name: run `unialign cache"),
        (
            lambda d, c: (c / "cache.json").unlink(),
            "is not finished: run the same `unialign cache` command",
        ),
        (
            lambda d, c: edit_json(d / "dataset.json", fingerprint="another"),
            "computed on another version of the data set.*--overwrite",
        ),
        (
            lambda d, c: (c / "edit" / "image-00000.npy").unlink(),
            "part 0 of `edit` is missing or damaged",
        ),
        (
            lambda d, c: (c / "edit" / "offsets-00001.npy").write_bytes(b"cut"),
            "part 1 of `edit` is missing or damaged",
        ),
        (lambda d, c: edit_json(c / "cache.json", format=9), f"format 9, .* reads {FORMAT}"),
        (lambda d, c: edit_json(c / "cache.json", streams=3), r"cache.json is damaged"),
    ],
)
def test_features_that_do_not_fit_are_refused(cached, spoil, said):
    spoil(cached, cached / "features" / "exact")
    config = DataConfig(str(cached), image_size=16, text_length=24, features="exact")
    with pytest.raises(UserError, match=said):
        make_iterator(config, seed=0, start_step=0, global_batch=4)


def test_the_files_are_plain_arrays_for_any_reader(directory):
    cache = FeatureCache(Prepared(directory), "exact")
    source = cache.source("edit")
    parts = {
        array: [
            np.load(cache.directory / "edit" / f"{array}-{k:05d}.npy", allow_pickle=False)
            for k in range(2)
        ]
        for array in ("image", "text", "offsets")
    }
    assert [len(part) for part in parts["image"]] == [2, 3]
    np.testing.assert_array_equal(parts["offsets"][1], [0, 1, 2, 3])
    np.testing.assert_array_equal(source.get(3)[0], parts["image"][1][1])
    np.testing.assert_array_equal(source.get(3)[1], parts["text"][1][1])


def test_a_file_that_vanishes_later_is_named(cached):
    source = FeatureCache(Prepared(cached), "exact").source("edit")
    file = cached / "features" / "exact" / "edit" / "image-00001.npy"
    file.write_bytes(file.read_bytes()[:40])
    source.get(1)
    with pytest.raises(UserError, match="image-00001.npy cannot be read .it is 8 bytes short"):
        source.get(2)
    file.unlink()
    with pytest.raises(UserError, match="image-00001.npy cannot be read .*No such file"):
        source.get(2)


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", ".."])
def test_a_name_stays_within_the_directory(tmp_path, name):
    with pytest.raises(UserError, match="not a name for a feature cache"):
        cache_directory(tmp_path, name)


def test_a_source_travels_to_other_processes_without_its_files(directory):
    source = FeatureCache(Prepared(directory), "exact").source("generate")
    source.get(0)
    packed = pickle.dumps(source)
    assert len(packed) < 1000
    np.testing.assert_array_equal(pickle.loads(packed).get(6)[0], source.get(6)[0])


def test_there_is_nothing_beyond_the_records(directory):
    source = FeatureCache(Prepared(directory), "exact").source("generate")
    for place in ((7, 0), (-1, 0), (0, 1)):
        with pytest.raises(IndexError):
            source.get(*place)
