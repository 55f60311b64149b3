"""Features of every record, once: zipped with it, kept when finished, continued when killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from tests.caching.stand_in_teacher import StandInTeacher
from unialign_jax.caching.parts import CacheOptions
from unialign_jax.caching.writer import write_cache
from unialign_jax.data import images, prepared, records
from unialign_jax.data.features import FeatureCache
from unialign_jax.data.prepared import Prepared
from unialign_jax.data.tasks import SCHEMA_VERSION, Record, Task
from unialign_jax.errors import UserError

CACHED = ["generate", "edit", "perceive", "compose_1", "compose_2"]


def exact(**more):
    return CacheOptions(**{"dtype": "float32", "batch": 3, **more})


def contents(directory):
    """Every file below a directory, by its path in it."""
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


@pytest.mark.parametrize("grid", [False, True])
def test_features_are_the_teachers_on_the_target_and_on_every_caption(data, grid):
    teacher = StandInTeacher()
    summary = write_cache(data, teacher, "mine", exact(grid=grid))
    assert list(summary.counts) == CACHED
    cache = FeatureCache(data, "mine")
    assert cache.image_shape == ((2, 2, 4) if grid else (4,)) and cache.grid == grid
    for name in CACHED:
        source, features = data.source(name), cache.source(name)
        assert len(features) == len(source) == summary.counts[name]
        for index in range(len(source)):
            record = source[index]
            target = images.to_pixels(images.decode(record.target), 16)
            wanted = teacher.image_features(target[None], grid=grid)[0]
            assert len(record.captions) == 3
            for caption, text in enumerate(record.captions):
                image, words = features.get(index, caption)
                np.testing.assert_array_equal(image, wanted)
                np.testing.assert_array_equal(words, teacher.text_features([text])[0])


def test_tasks_without_an_image_branch_have_no_features(data):
    assert "answer" in {stream.name for stream in data.streams}
    write_cache(data, StandInTeacher(), "mine", exact())
    assert FeatureCache(data, "mine").source("answer") is None


def test_the_batch_changes_nothing(data):
    for name, batch in (("one", 1), ("many", 64)):
        write_cache(data, StandInTeacher(), name, exact(batch=batch))
    one, many = (contents(data.directory / "features" / name) for name in ("one", "many"))
    assert one == many


def test_a_second_run_computes_nothing(data):
    first = write_cache(data, StandInTeacher(), "mine", exact())
    before = contents(first.directory)
    again = StandInTeacher()
    second = write_cache(data, again, "mine", exact())
    assert again.batches == 0
    assert (second.parts_written, second.parts_kept) == (0, first.parts_written)
    assert (second.counts, second.captions, second.bytes) == (
        first.counts,
        first.captions,
        first.bytes,
    )
    assert contents(first.directory) == before


_KILLED = """
import os, signal, sys
from tests.caching.stand_in_teacher import StandInTeacher
from unialign_jax.caching.parts import CacheOptions
from unialign_jax.caching.writer import write_cache
from unialign_jax.data.prepared import Prepared

def kill(batches):
    if batches == 4:
        os.kill(os.getpid(), signal.SIGKILL)

options = CacheOptions(dtype="float32", batch=1)
write_cache(Prepared(sys.argv[1]), StandInTeacher(before=kill), "mine", options)
"""


def test_a_killed_run_continues_where_it_stopped(data, repository):
    call = [sys.executable, "-c", _KILLED, str(data.directory)]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    done = subprocess.run(call, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with pytest.raises(UserError, match="is not finished: run the same `unialign cache` command"):
        FeatureCache(data, "mine")

    calls = []
    teacher = StandInTeacher()
    options = exact(batch=1)
    summary = write_cache(
        data, teacher, "mine", options, on_start=lambda *numbers: calls.append(numbers)
    )
    # Two parts of 2 and 3 generate records: the first was done, the second had begun.
    assert (summary.parts_kept, calls) == (1, [(20, 2)])
    assert teacher.batches == 18
    whole = write_cache(data, StandInTeacher(), "whole", options)
    assert contents(summary.directory) == contents(whole.directory)


def test_a_damaged_part_is_computed_again(data):
    summary = write_cache(data, StandInTeacher(), "mine", exact())
    before = contents(summary.directory)
    (summary.directory / "edit" / "text-00001.npy").write_bytes(b"short")
    with pytest.raises(UserError, match="part 1 of `edit` is missing or damaged"):
        FeatureCache(data, "mine")
    again = write_cache(data, StandInTeacher(), "mine", exact())
    assert (again.parts_written, again.parts_kept) == (1, summary.parts_written - 1)
    assert contents(summary.directory) == before


@pytest.mark.parametrize(
    ("teacher", "options"),
    [
        (StandInTeacher("second"), exact()),
        (StandInTeacher(pixels=8), exact()),
        (StandInTeacher(), exact(grid=True)),
        (StandInTeacher(), exact(dtype="float16")),
    ],
)
def test_features_of_something_else_are_replaced_only_when_told(data, teacher, options):
    summary = write_cache(data, StandInTeacher(), "mine", exact())
    before = contents(summary.directory)
    with pytest.raises(UserError, match="features of another teacher.*--overwrite"):
        write_cache(data, teacher, "mine", options)
    assert contents(summary.directory) == before
    overwrite = CacheOptions(options.grid, options.dtype, options.batch, overwrite=True)
    again = write_cache(data, teacher, "mine", overwrite)
    assert again.parts_kept == 0
    assert FeatureCache(data, "mine").info["teacher"]["fingerprint"] == teacher.fingerprint


@pytest.mark.parametrize(
    ("scale", "said"),
    [(1e6, "too large for float16: cache them with --dtype float32"), (np.nan, "not finite")],
)
def test_features_that_cannot_be_stored_stop_the_run(data, scale, said):
    with pytest.raises(UserError, match=said):
        write_cache(data, StandInTeacher(scale=scale), "mine", CacheOptions())
    left = [path for path in (data.directory / "features").rglob("*") if path.is_file()]
    assert [path.name for path in left] == ["plan.json"]


def test_a_folder_that_cannot_be_written_is_named(data):
    (data.directory / "features").write_text("a file in the way")
    with pytest.raises(UserError, match="cannot write .*features"):
        write_cache(data, StandInTeacher(), "mine", exact())


# ---------------------------------------------------------------------- records that lack something


def write_set(folder, items, name="generate"):
    """A prepared directory with exactly these records, also such as `prepare` would refuse."""
    where = records.stream_directory(folder, name)
    shard = records.write_shard(where / records.shard_name(name, 0, 1), items)
    stream = {"name": name, "task": name, "conditions": 0, "examples": len(items)}
    prepared.write_json(
        folder / "dataset.json",
        {"schema_version": SCHEMA_VERSION, "streams": [{**stream, "shards": [shard._asdict()]}]},
    )
    return Prepared(folder)


def record(number, **changes):
    colour = np.full((16, 16, 3), number, np.uint8)
    fields = {"target": images.encode(colour), "captions": (f"number {number}",)}
    return Record(f"item-{number}", Task.GENERATE, height=16, width=16, **{**fields, **changes})


def test_a_record_without_caption_has_zeros(tmp_path):
    data = write_set(tmp_path, [record(1), record(2, captions=()), record(3)])
    summary = write_cache(data, StandInTeacher(), "mine", exact())
    assert summary.captions == 2
    features = FeatureCache(data, "mine").source("generate")
    wanted = StandInTeacher().text_features(["number 1", "number 3"])
    np.testing.assert_array_equal(features.get(0)[1], wanted[0])
    np.testing.assert_array_equal(features.get(1)[1], np.zeros(4))
    np.testing.assert_array_equal(features.get(2)[1], wanted[1])
    np.testing.assert_allclose(features.get(1)[0], np.full(4, 2 / 255), rtol=1e-5)


def test_a_set_without_any_caption_can_be_cached(tmp_path):
    data = write_set(tmp_path, [record(1, captions=()), record(2, captions=())])
    assert write_cache(data, StandInTeacher(), "mine", exact()).captions == 0
    assert FeatureCache(data, "mine").source("generate").get(1)[1].shape == (4,)


def test_records_that_cannot_be_read_are_counted_and_keep_their_places(tmp_path):
    items = [record(k) for k in range(1, 6)]
    items[1] = record(2, target=b"junk")
    items[3] = record(4, schema_version=7)
    data = write_set(tmp_path, items)
    summary = write_cache(data, StandInTeacher(), "mine", exact())
    assert summary.bad == {"undecodable": 1, "damaged": 1}
    entry = json.loads((summary.directory / "manifest" / "generate-00000.json").read_text())
    assert [bad["record"] for bad in entry["bad"]] == [1, 3]
    assert "record 1: not a readable image" in entry["bad"][0]["reason"]
    features = FeatureCache(data, "mine").source("generate")
    for index, value in enumerate((1, 0, 3, 0, 5)):
        np.testing.assert_allclose(features.get(index)[0], np.full(4, value / 255), rtol=1e-5)
    np.testing.assert_array_equal(
        features.get(4)[1], StandInTeacher().text_features(["number 5"])[0]
    )


def test_a_set_of_questions_only_is_refused(tmp_path):
    data = write_set(tmp_path, [record(1)], "answer")
    with pytest.raises(UserError, match="nothing to compute"):
        write_cache(data, StandInTeacher(), "mine", exact())
