"""What a job leaves on disk, whole at any moment."""

from __future__ import annotations

import json
import os

import pytest

from unialign_jax.errors import UserError
from unialign_jax.sampling import writers
from unialign_jax.sampling.writers import Result, ResultsFile


def ok(name, **fields):
    return Result(name, "caption", writers.OK, text=f"text of {name}", seed=1, **fields)


def failed(name):
    return Result(name, "caption", writers.FAILED, error="jobs.jsonl:1: no", seed=None)


def names(directory, file=writers.RESULTS):
    return [json.loads(line)["id"] for line in (directory / file).read_text().splitlines()]


def test_a_line_has_the_fields_that_programs_read():
    line = json.loads(ok("a", seconds=0.123456).to_json())
    assert list(line) == ["id", "task", "status", "outputs", "text", "error", "seconds", "seed"]
    assert line["outputs"] == []
    assert line["seconds"] == 0.1235
    assert line["error"] is None


@pytest.mark.parametrize("text", ["line\nend", "\u2028", "naïve 猫", "\ud800", '"'])
def test_any_text_survives_the_file(tmp_path, text):
    file = ResultsFile(tmp_path)
    file.append([Result(text, "caption", writers.OK, text=text), ok("b")])
    file.close()
    assert writers.read_results(tmp_path / "results.jsonl")[0].text == text
    assert len(writers.read_all(tmp_path)) == 2


def test_a_torn_last_line_is_dropped_at_the_next_start(tmp_path):
    file = ResultsFile(tmp_path)
    file.append([ok("a"), ok("b")])
    file.close()
    path = tmp_path / "results.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    file = ResultsFile(tmp_path)
    file.append([ok("c")])
    file.close()
    assert names(tmp_path) == ["a", "c"]


def test_what_is_tried_again_loses_its_old_line(tmp_path):
    file = ResultsFile(tmp_path)
    file.append([ok("a"), failed("b")])
    file.close()
    ResultsFile(tmp_path, keep=lambda result: result.status == writers.OK).close()
    assert names(tmp_path) == ["a"]


def test_shards_write_files_of_their_own_and_the_last_one_joins_them(tmp_path):
    for index, mine in enumerate((["a", "c"], ["b"])):
        file = ResultsFile(tmp_path, (index, 2))
        file.append(ok(name) for name in mine)
        file.close()
        assert writers.join_results(tmp_path, ["a", "b", "c"]) is (index == 1)
    assert names(tmp_path) == ["a", "b", "c"]
    assert names(tmp_path, "results-00000-of-00002.jsonl") == ["a", "c"]


def test_a_good_result_wins_over_a_failed_one(tmp_path):
    for index, results in enumerate(([ok("a")], [failed("a")])):
        file = ResultsFile(tmp_path, (index, 2))
        file.append(results)
        file.close()
    assert writers.read_all(tmp_path)["a"].status == writers.OK


def test_a_result_without_its_image_is_not_done(tmp_path, photos):
    name = writers.write_image(tmp_path, "a", photos[0])
    assert name == "images/a.png"
    result = ok("a", outputs=(name,))
    assert writers.is_done(result, tmp_path)
    (tmp_path / name).unlink()
    assert not writers.is_done(result, tmp_path)
    assert not writers.is_done(failed("a"), tmp_path)


def test_a_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    writers.write_bytes(tmp_path / "a", b"before")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        writers.write_bytes(tmp_path / "a", b"after")
    assert (tmp_path / "a").read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "..",
        ".hidden",
        "a/b",
        "a\\b",
        "a\0b",
        "猫",
        "",
        "x" * 999,
    ],
)
def test_no_id_leads_out_of_its_folder(tmp_path, name):
    file = writers.file_name(name)
    assert 0 < len(file) < 150
    assert (tmp_path / file).resolve().parent == tmp_path.resolve()
    assert not file.startswith(".")


def test_two_ids_never_share_a_file():
    ids = ["a", "A", "a/b", "a_b", "a\\b", ".a", "猫", "犬", "x" * 200, "x" * 201]
    files = [writers.file_name(name).lower() for name in ids]
    assert len(set(files)) == len(ids)
    assert writers.file_name("item-01.v2_x") == "item-01.v2_x"


def test_a_folder_belongs_to_one_set_of_settings(tmp_path):
    assert writers.recorded_settings(tmp_path, {"steps": 28}) is None
    assert writers.record_settings(tmp_path, {"steps": 28, "checkpoint_step": 7})["steps"] == 28
    # A process that comes later takes what the first one recorded.
    late = writers.record_settings(tmp_path, {"steps": 28, "checkpoint_step": 9})
    assert late["checkpoint_step"] == 7
    assert writers.recorded_settings(tmp_path, {"steps": 28}) == {"steps": 28, "checkpoint_step": 7}
    with pytest.raises(UserError, match="steps was 28 and is 50"):
        writers.recorded_settings(tmp_path, {"steps": 50})
    assert [path.name for path in tmp_path.iterdir()] == ["job.json"]
