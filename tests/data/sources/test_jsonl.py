"""The reference's lines become records; every bad line has a kind and a reason."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from unialign_jax.data.sources import jsonl
from unialign_jax.data.sources.jsonl import JsonlOptions
from unialign_jax.data.tasks import BadItem, Task, Turn


def record_of(lines, **options):
    """The record of the last line written."""
    line = jsonl.parse(lines.lines[-1].encode())
    return jsonl.read_record(line, "item-1", lines.folder, JsonlOptions(**options))


def kind_of(lines, **options):
    with pytest.raises(BadItem) as caught:
        record_of(lines, **options)
    assert caught.value.reason
    return caught.value.kind


def test_a_text_to_image_line(lines, picture):
    record = record_of(lines.t2i())
    assert (record.id, record.task) == ("item-1", Task.GENERATE)
    assert record.target == picture(0)
    assert record.captions == ("caption of images/0000.png",)
    assert (record.conditions, record.instruction) == ((), "")


def test_an_edit_line_has_source_then_target_and_the_caption_of_the_target(lines, picture):
    record = record_of(lines.edit(id=17))
    assert (record.id, record.task) == ("17", Task.EDIT)
    assert record.conditions == (picture(0),)
    assert record.target == picture(1)
    assert record.instruction == "mend it"
    assert record.captions == ("caption of images/0001.png",)


def test_an_edit_line_without_caption_keeps_its_record(lines):
    lines.add(image=[lines.image(), lines.image()], instruction="mend it")
    assert record_of(lines).captions == ()


@pytest.mark.parametrize("references", [1, 2, 3])
def test_a_compose_line_has_one_to_three_references(lines, picture, references):
    record = record_of(lines.compose(references))
    assert record.task is Task.COMPOSE
    assert record.conditions == tuple(picture(k) for k in range(references))
    assert record.target == picture(references)
    # The published prompts are wrapped in quotes and backslashes.
    assert record.instruction == "both together"
    assert record.captions == ("a caption",)


def test_a_fourth_reference_is_left_out_as_in_the_reference(lines):
    assert len(record_of(lines.compose(4)).conditions) == 3
    assert jsonl.stream_of(json.loads(lines.lines[0])) == "compose_3"


@pytest.mark.parametrize(
    ("form", "line", "count"),
    [
        ("t2i", {"image": ["a"]}, 0),
        ("t2i", {"image": "a"}, 0),
        ("t2i", {"image": ["a", "b", "c"]}, 2),
        ("answer", {"image": ["a", "b"]}, 1),
        ("edit", {"image": ["a", "b"]}, 0),
        ("perceive", {"image": ["a", "b", "c"]}, 1),
        ("compose", {"original_images": ["a"] * 3, "generated_images": ["b"]}, 0),
        ("compose", {"original_images": ["a"] * 5, "generated_images": ["b", "c"]}, 3),
        ("compose", {"original_images": None}, 0),
    ],
)
def test_images_that_have_no_part_in_the_record_are_counted(form, line, count):
    assert jsonl.surplus_images(line, form) == count


def test_a_perceive_line_is_an_edit_line_with_a_kind_of_map(lines):
    record = record_of(lines.edit(map_kind="depth"))
    assert (record.task, record.map_kind) == (Task.PERCEIVE, "depth")
    assert record.captions == ("caption of images/0001.png",)
    record = record_of(lines.edit(source_caption="a street"), format="perceive")
    assert (record.task, record.captions) == (Task.PERCEIVE, ("a street",))


def test_an_answer_line_is_a_conversation(lines):
    talk = [
        {"from": "human", "value": "<image>\nwhat is it?"},
        {"from": "gpt", "value": "a cat"},
        {"from": "human", "value": "what colour?"},
        {"from": "gpt", "value": "red"},
    ]
    record = record_of(lines.add(image=lines.image(), conversations=talk), format="answer")
    assert record.task is Task.ANSWER
    assert record.turns == (
        Turn("Q: what is it? A: ", False),
        Turn("a cat", True),
        Turn("Q: what colour? A: ", False),
        Turn("red", True),
    )
    assert record.captions == ()


def test_paths_start_from_the_image_root(lines, tmp_path, picture):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").write_bytes(picture(5))
    line = {"image": ["a.png"], "conversations": [{"value": "a"}]}
    record = jsonl.read_record(line, "x", tmp_path / "elsewhere", JsonlOptions())
    assert record.target == picture(5)


@pytest.mark.parametrize("how", ["dots", "absolute", "link"])
def test_a_path_that_leads_out_of_the_root_is_refused_unless_allowed(lines, tmp_path, picture, how):
    outside = tmp_path / "outside.png"
    outside.write_bytes(picture(9))
    lines.folder.mkdir()
    name = {"dots": "../outside.png", "absolute": str(outside), "link": "link.png"}[how]
    (lines.folder / "link.png").symlink_to(outside)
    lines.add(image=[name], conversations=[{"value": "a"}])
    assert kind_of(lines) == "outside"
    assert record_of(lines, allow_outside=True).target == picture(9)


def test_an_absolute_path_inside_the_root_is_fine(lines, picture):
    name = str((lines.folder / lines.image()).resolve())
    lines.add(image=[name], conversations=[{"value": "a"}])
    assert record_of(lines).target == picture(0)


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ({}, "format"),
        ({"text": "a"}, "format"),
        ({"image": ["a.png"]}, "format"),
        ({"image": [], "conversations": [{"value": "a"}]}, "missing_image"),
        ({"image": ["no.png"], "conversations": [{"value": "a"}]}, "missing_image"),
        ({"image": ["images"], "conversations": [{"value": "a"}]}, "missing_image"),
        ({"image": ["a\0b"], "conversations": [{"value": "a"}]}, "missing_image"),
        ({"image": ["x" * 5000], "conversations": [{"value": "a"}]}, "unreadable_image"),
        ({"image": ["images/0000.png"], "conversations": []}, "missing_key"),
        ({"image": ["images/0000.png"], "conversations": [{}]}, "missing_key"),
        ({"image": ["images/0000.png"], "conversations": [{"value": " "}]}, "bad_value"),
        ({"image": ["images/0000.png"], "conversations": [{"value": 3}]}, "bad_value"),
        ({"image": 3, "conversations": [{"value": "a"}]}, "bad_value"),
        ({"image": [3], "conversations": [{"value": "a"}]}, "bad_value"),
        ({"image": ["images/0000.png"], "instruction": "a"}, "missing_key"),
        ({"image": [None, 1], "instruction": "a"}, "bad_value"),
        ({"original_images": ["images/0000.png"], "edit_prompt": "a"}, "missing_key"),
        (
            {"original_images": ["images/0000.png"], "generated_images": ["images/0000.png"]},
            "missing_key",
        ),
    ],
)
def test_a_bad_line_has_a_kind(lines, line, kind):
    lines.image()
    assert kind_of(lines.add(**line)) == kind


def test_a_missing_key_is_named(lines):
    lines.add(image=[lines.image()], conversations=[{}])
    with pytest.raises(BadItem, match=r"no `conversations\[0\]\.value` in the line"):
        record_of(lines)


def test_a_file_of_absurd_size_is_not_read(lines, monkeypatch):
    monkeypatch.setattr(jsonl, "MAX_IMAGE_BYTES", 100)
    assert kind_of(lines.t2i()) == "too_large"


@pytest.mark.parametrize("text", ["{", "[1]", "3", '"a"', "null", "{'a': 1}", "[" * 100_000])
def test_text_that_is_no_json_object_is_bad(text):
    with pytest.raises(BadItem) as caught:
        jsonl.parse(text.encode())
    assert caught.value.kind == "json"


def test_half_a_surrogate_pair_is_bad_and_a_whole_one_is_not():
    with pytest.raises(BadItem, match="json"):
        jsonl.parse(rb'{"caption": "\ud83d"}')
    assert jsonl.parse(rb'{"caption": "\ud83d\ude00"}') == {"caption": "\N{GRINNING FACE}"}


def test_bytes_that_are_no_text_are_bad():
    with pytest.raises(BadItem, match="json"):
        jsonl.parse(b'{"a": "\xff"}')


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
keys = st.sampled_from(
    ["image", "conversations", "instruction", "original_images", "generated_images", "caption"]
    + ["edit_prompt", "map_kind", "source_caption", "id"]
)


@given(line=st.dictionaries(keys, json_values), form=st.sampled_from(list(jsonl.FORMATS)))
@example(line={"image": [], "conversations": None}, form="answer")
@example(line={"image": [], "conversations": "text"}, form="answer")
@settings(max_examples=200, deadline=None)
def test_no_line_whatever_its_values_raises_anything_but_a_bad_item(tmp_path_factory, line, form):
    root = tmp_path_factory.getbasetemp()
    with contextlib.suppress(BadItem):
        jsonl.stream_of(line, form)
        jsonl.read_record(line, "item", root, JsonlOptions(format=form))
    assert all(isinstance(text, str) for text in jsonl.texts(line))


def test_texts_are_captions_and_instructions(lines):
    lines.edit().compose(1)
    assert list(jsonl.texts(json.loads(lines.lines[0]))) == [
        "mend it",
        "caption of images/0001.png",
    ]
    assert list(jsonl.texts(json.loads(lines.lines[1]))) == ["both together", "a caption"]
