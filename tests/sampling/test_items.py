"""Items of a job: every wrong line is one failed item that names its line and key."""

from __future__ import annotations

import json

import pytest

from unialign_jax.data.tasks import Task
from unialign_jax.errors import UserError
from unialign_jax.sampling.items import quick_items, read_items


@pytest.fixture
def jobs(tmp_path):
    def write(*lines):
        path = tmp_path / "jobs.jsonl"
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        path.write_text("\n".join(texts) + "\n")
        return path

    return write


def test_lines_become_items_in_order(jobs):
    path = jobs({"id": "a", "prompt": "x", "seed": 5}, "", {"prompt": "y", "other": 1})
    first, second = read_items(path, Task.GENERATE)
    assert (first.index, first.id, first.text, first.seed) == (0, "a", "x", 5)
    assert (second.index, second.id, second.text) == (1, "000003", "y")
    assert second.where == "jobs.jsonl:3"
    assert second.error is None


def test_an_item_without_a_seed_gets_one_of_its_id_alone(jobs):
    lines = [{"id": name, "prompt": "x"} for name in "abc"]
    there = {item.id: item.seed for item in read_items(jobs(*lines), Task.GENERATE)}
    turned = {item.id: item.seed for item in read_items(jobs(*lines[::-1]), Task.GENERATE)}
    assert there == turned
    assert len(set(there.values())) == 3
    other = {item.id: item.seed for item in read_items(jobs(*lines), Task.GENERATE, seed=1)}
    assert not set(other.values()) & set(there.values())


@pytest.mark.parametrize(
    ("task", "line", "text", "images"),
    [
        (Task.CAPTION, {"image": "a.png"}, "", ("a.png",)),
        (Task.ANSWER, {"image": "a.png", "question": "q"}, "q", ("a.png",)),
        (Task.EDIT, {"images": ["a.png"], "instruction": "i"}, "i", ("a.png",)),
        (Task.PERCEIVE, {"image": "a.png", "instruction": "depth"}, "depth", ("a.png",)),
        (Task.COMPOSE, {"images": ["a", "b"], "instruction": "i"}, "i", ("a", "b")),
        (Task.COMPOSE, {"image": "a", "instruction": "i"}, "i", ("a",)),
    ],
)
def test_each_task_reads_its_keys(jobs, task, line, text, images):
    (item,) = read_items(jobs(line), task)
    assert (item.text, item.images, item.error) == (text, images, None)


@pytest.mark.parametrize(
    ("task", "line", "key"),
    [
        (Task.GENERATE, {"instruction": "x"}, "no `prompt`.*instruction"),
        (Task.GENERATE, {"prompt": 3}, "`prompt` is 3"),
        (Task.GENERATE, {"prompt": "x", "seed": -1}, "`seed`"),
        (Task.GENERATE, {"prompt": "x", "seed": "1"}, "`seed`"),
        (Task.GENERATE, {"prompt": "x", "id": ["a"]}, "`id`"),
        (Task.GENERATE, {"prompt": "x", "id": " "}, "`id`"),
        (Task.GENERATE, '{"prompt": "x"', "not JSON"),
        (Task.GENERATE, '["x"]', "not a JSON object"),
        (Task.CAPTION, {"prompt": "x"}, "no `image`"),
        (Task.EDIT, {"image": "a.png"}, "no `instruction`"),
        (Task.EDIT, {"images": ["a", "b"], "instruction": "i"}, "`images` has 2"),
        (Task.EDIT, {"image": {"path": "a"}, "instruction": "i"}, "`image` is"),
        (Task.COMPOSE, {"images": [], "instruction": "i"}, "`images` has 0"),
        (Task.COMPOSE, {"instruction": "i"}, "no `images`"),
        (Task.COMPOSE, {"images": list("abcd"), "instruction": "i"}, "`images` has 4.* 1 to 3"),
    ],
)
def test_a_wrong_line_names_line_and_key_and_spares_the_others(jobs, task, line, key):
    good = {"prompt": "x", "image": "a.png", "instruction": "i", "question": "q"}
    first, bad = read_items(jobs(good, line), task)
    assert first.error is None
    with pytest.raises(AssertionError, match=f"^jobs.jsonl:2: .*{key}"):
        raise AssertionError(bad.error)


def test_a_second_use_of_an_id_fails_and_keeps_ids_unique(jobs):
    path = jobs(*[{"id": "a", "prompt": text} for text in "xyz"])
    first, second, third = read_items(path, Task.GENERATE)
    assert first.error is None
    assert second.error == "jobs.jsonl:2: `id` 'a' is also that of line 1"
    assert "line 1" in third.error
    assert [first.id, second.id, third.id] == ["a", "a#2", "a#3"]


def test_a_limit_takes_the_first_items(jobs):
    path = jobs(*[{"prompt": text} for text in "xyz"])
    assert [item.text for item in read_items(path, Task.GENERATE, limit=2)] == ["x", "y"]


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (None, "cannot be read"),
        (b"", "has no items"),
        (b"\n \n", "has no items"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"a cat\na dog\n", "jobs.jsonl:1: not JSON"),
        (b'"a cat"\n', "not a JSON object"),
    ],
)
def test_a_file_that_is_no_jsonl_is_the_users_error(tmp_path, data, what):
    path = tmp_path / "jobs.jsonl"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(UserError, match=f"(?s)jobs.jsonl.*{what}|{what}"):
        read_items(path, Task.GENERATE)


def test_a_quick_call_names_its_items_by_what_decides_them():
    one = quick_items(Task.GENERATE, ["A red cube!"], [], 3)
    assert one[0].id.startswith("a-red-cube-")
    assert one[0].seed == 3
    assert one == quick_items(Task.GENERATE, ["A red cube!"], [], 3)
    assert one[0].id != quick_items(Task.GENERATE, ["A red cube!"], [], 4)[0].id
    assert one[0].id != quick_items(Task.GENERATE, ["A red cube!"], [], 3, "steps 9")[0].id


def test_an_empty_prompt_is_a_prompt():
    (item,) = quick_items(Task.GENERATE, [""], [], 0)
    assert item.text == "" and item.id.startswith("generate-")


def test_a_quick_call_has_one_item_per_text_or_image_but_composes_all_images():
    twice = quick_items(Task.GENERATE, ["x", "x"], [], 0)
    assert len({item.id for item in twice}) == len({item.seed for item in twice}) == 2
    captions = quick_items(Task.CAPTION, [""], ["a.png", "b.png"], 0)
    assert [item.images for item in captions] == [("a.png",), ("b.png",)]
    (composed,) = quick_items(Task.COMPOSE, ["x"], ["a.png", "b.png"], 0)
    assert composed.images == ("a.png", "b.png")
