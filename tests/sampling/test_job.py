"""Sampling jobs: resumable, split over processes, one line per item, the same whatever happens."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unialign_jax.data.tasks import Task
from unialign_jax.errors import Interrupted
from unialign_jax.sampling.items import read_items
from unialign_jax.sampling.job import JobOptions, check_items, run_job
from unialign_jax.sampling.job_grid import write_grid
from unialign_jax.sampling.pipeline import Pipeline

BATCH = 4


def options(folder: Path, task: Task, **fields) -> JobOptions:
    return JobOptions(task=task, out=folder / "out", image_root=folder, batch=BATCH, **fields)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "out/results.jsonl").read_text().splitlines()]


def pixels(folder: Path) -> dict[str, np.ndarray]:
    return {
        line["id"]: np.asarray(Image.open(folder / "out" / line["outputs"][0])).astype(int)
        for line in lines(folder)
        if line["status"] == "ok"
    }


def assert_same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert np.abs(left[name] - right[name]).max() <= 1, name


@pytest.fixture
def folder(tmp_path: Path, photos: list[Image.Image]) -> Path:
    """Jobs for every task, with photographs beside them."""
    for index, photo in enumerate(photos):
        photo.save(tmp_path / f"{index}.png")
    (tmp_path / "damaged.png").write_bytes((tmp_path / "0.png").read_bytes()[:100])
    return tmp_path


def write_jobs(folder: Path, task: Task, entries: list[dict], name: str = "jobs.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return read_items(path, task)


PROMPTS = [{"id": f"p{i}", "prompt": f"a cat {i}"} for i in range(6)]


@pytest.fixture
def load(pipe: Pipeline) -> Callable[[], Pipeline]:
    """The shared model, in the place of one that is loaded for each job."""
    return lambda: pipe


def refuse() -> Pipeline:
    raise AssertionError("nothing is to be made, so no model should be loaded")


def test_every_item_gets_a_line_and_an_image(folder, load):
    items = write_jobs(folder, Task.GENERATE, PROMPTS)
    report = run_job(items, options(folder, Task.GENERATE), load)
    assert (report.done, report.failed, report.skipped) == (6, 0, 0)
    found = lines(folder)
    assert [line["id"] for line in found] == [entry["id"] for entry in PROMPTS]
    for item, line in zip(items, found, strict=True):
        assert line["status"] == "ok"
        assert line["task"] == "generate"
        assert line["outputs"] == [f"images/{item.id}.png"]
        assert line["text"] is None
        assert line["error"] is None
        assert line["seconds"] > 0
        assert line["seed"] == item.seed
        with Image.open(folder / "out" / line["outputs"][0]) as image:
            assert (image.format, image.size, image.mode) == ("PNG", (16, 16), "RGB")


def test_an_item_can_be_made_again_from_its_line(folder, load, pipe):
    run_job(write_jobs(folder, Task.GENERATE, PROMPTS), options(folder, Task.GENERATE), load)
    line = lines(folder)[4]
    (image,) = pipe.generate(PROMPTS[4]["prompt"], seed=line["seed"], batch=BATCH)
    assert np.abs(np.asarray(image).astype(int) - pixels(folder)["p4"]).max() <= 1


def test_a_second_start_makes_only_what_is_missing(folder, load):
    items = write_jobs(folder, Task.GENERATE, PROMPTS)
    run_job(items, options(folder, Task.GENERATE), load)
    before = pixels(folder)
    assert run_job(items, options(folder, Task.GENERATE), refuse).skipped == 6

    results = folder / "out/results.jsonl"
    kept = results.read_text().splitlines(keepends=True)
    results.write_text("".join(kept[:4]) + kept[4][:25])  # killed while writing a line
    (folder / "out/images/p1.png").unlink()
    report = run_job(items, options(folder, Task.GENERATE), load)
    assert (report.done, report.skipped) == (6, 3)
    assert [line["id"] for line in lines(folder)] == [item.id for item in items]
    assert_same(pixels(folder), before)


@pytest.mark.parametrize("count", [2, 5])
def test_results_are_the_same_whatever_the_number_of_shards(folder, load, tmp_path, count):
    items = write_jobs(folder, Task.GENERATE, PROMPTS)
    run_job(items, options(folder, Task.GENERATE), load)
    other = dataclasses.replace(options(folder, Task.GENERATE), out=tmp_path / "split/out")
    for index in reversed(range(count)):
        report = run_job(items, dataclasses.replace(other, shard=(index, count)), load)
        assert report.done == len(range(index, 6, count))
    assert_same(pixels(folder), pixels(tmp_path / "split"))
    assert [line["id"] for line in lines(tmp_path / "split")] == [item.id for item in items]


def test_a_stop_is_heeded_between_batches_and_the_next_start_goes_on(folder, load):
    items = write_jobs(folder, Task.GENERATE, PROMPTS)
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 1

    with pytest.raises(Interrupted, match="4 of 6 items") as caught:
        run_job(items, options(folder, Task.GENERATE), load, stop=stop)
    assert caught.value.exit_code == 75
    assert len(lines(folder)) == 4
    report = run_job(items, options(folder, Task.GENERATE), load)
    assert (report.done, report.skipped) == (6, 4)


def test_bad_items_fail_by_name_and_the_others_are_made(folder, load):
    entries = [
        {"id": "good", "image": "0.png", "instruction": "make it blue"},
        {"id": "gone", "image": "no.png", "instruction": "make it blue"},
        {"id": "damaged", "image": "damaged.png", "instruction": "make it blue"},
        {"id": "outside", "image": "../x.png", "instruction": "make it blue"},
        {"id": "empty", "image": "1.png", "instruction": " "},
        {"id": "keyless", "image": "1.png"},
        {"id": "good", "image": "1.png", "instruction": "make it red"},
        {"id": "last", "image": "1.png", "instruction": "make it red"},
    ]
    items = write_jobs(folder, Task.EDIT, entries)
    report = run_job(items, options(folder, Task.EDIT), load)
    assert (report.done, report.failed) == (2, 6)
    assert len(report.errors) == 5
    found = {line["id"]: line for line in lines(folder)}
    assert [line["id"] for line in lines(folder)][6] == "good#7"
    wanted = {
        "gone": "jobs.jsonl:2: `image`: no image file",
        "damaged": "jobs.jsonl:3: `image`: damaged image",
        "outside": "jobs.jsonl:4: `image`: ../x.png leads out of",
        "empty": "jobs.jsonl:5: edit: the instruction is empty",
        "keyless": "jobs.jsonl:6: no `instruction`",
        "good#7": "jobs.jsonl:7: `id` 'good' is also that of line 1",
    }
    for name, error in wanted.items():
        assert found[name]["status"] == "failed"
        assert found[name]["error"].startswith(error)
        assert found[name]["outputs"] == []
    assert found["good"]["status"] == found["last"]["status"] == "ok"
    # A second start tries the failed ones again, and finds one mended.
    Image.open(folder / "0.png").save(folder / "no.png")
    report = run_job(items, options(folder, Task.EDIT), load)
    assert (report.done, report.failed, report.skipped) == (3, 5, 2)
    assert len(lines(folder)) == 8


def test_a_job_of_bad_items_loads_no_model(folder):
    items = write_jobs(folder, Task.GENERATE, [{"text": "x"}])
    assert run_job(items, options(folder, Task.GENERATE), refuse).failed == 1
    assert lines(folder)[0]["seed"] is None


def test_texts_are_written_into_their_lines(folder, load, pipe, photos):
    entries = [{"id": str(i), "image": f"{i}.png", "seed": 1} for i in range(3)]
    run_job(write_jobs(folder, Task.CAPTION, entries), options(folder, Task.CAPTION), load)
    found = lines(folder)
    assert [line["outputs"] for line in found] == [[]] * 3
    alone = pipe.caption(photos[1], seed=1, batch=BATCH)
    assert found[1]["text"] == alone[0]
    assert not (folder / "out/images").exists()


def test_references_of_different_number_go_into_one_job(folder, load):
    entries = [
        {"id": "two", "images": ["0.png", "1.png"], "instruction": "together"},
        {"id": "one", "images": ["0.png"], "instruction": "together"},
        {"id": "again", "images": ["2.png", "1.png"], "instruction": "together"},
    ]
    items = write_jobs(folder, Task.COMPOSE, entries)
    assert run_job(items, options(folder, Task.COMPOSE), load).done == 3
    assert [line["id"] for line in lines(folder)] == ["two", "one", "again"]


def test_long_prompts_are_cut_and_counted(folder, load):
    items = write_jobs(folder, Task.GENERATE, [{"prompt": "cat " * 99}, {"prompt": "cat"}])
    assert run_job(items, options(folder, Task.GENERATE), load).truncated == 1


def test_results_of_other_jobs_in_the_folder_stay(folder, load):
    run_job(write_jobs(folder, Task.GENERATE, PROMPTS[:1]), options(folder, Task.GENERATE), load)
    again = options(folder, Task.GENERATE, resume=False)
    run_job(write_jobs(folder, Task.GENERATE, PROMPTS[1:2]), again, load)
    assert {line["id"] for line in lines(folder)} == {"p0", "p1"}


def test_a_dry_check_finds_missing_images(folder):
    entries = [{"image": "0.png"}, {"image": "no.png"}]
    items = check_items(write_jobs(folder, Task.CAPTION, entries), options(folder, Task.CAPTION))
    assert items[0].error is None
    assert items[1].error.startswith("jobs.jsonl:2: `image`: no image file 'no.png'")


def test_a_grid_shows_what_was_asked_for_and_made(folder, load):
    entries = [{"id": "a", "image": "0.png", "instruction": "blue"}]
    items = write_jobs(folder, Task.EDIT, entries)
    assert write_grid(items, options(folder, Task.EDIT)) is None
    run_job(items, options(folder, Task.EDIT), load)
    with Image.open(write_grid(items, options(folder, Task.EDIT))) as grid:
        assert grid.width > 2 * 128
