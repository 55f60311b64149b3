"""A first pass finds every line, its stream and its place; what is read follows from the place."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from unialign_jax.data.sources.jsonl import JsonlOptions
from unialign_jax.data.sources.jsonl_source import JsonlSource, Place, Places
from unialign_jax.data.tasks import BadItem
from unialign_jax.errors import UserError


def scan(*paths):
    return JsonlSource(paths).scan()


def test_a_scan_finds_streams_places_and_bad_lines(lines):
    lines.t2i(2).raw("").raw("{oops").edit().compose(2)
    path = lines.write()
    found = scan(path)
    assert found.total == 5
    assert {name: len(places) for name, places in found.streams.items()} == {
        "generate": 2,
        "edit": 1,
        "compose_2": 1,
    }
    assert [(entry["file"], entry["line"], entry["kind"]) for entry in found.bad] == [
        ("lines.jsonl", 4, "json")
    ]
    (place,) = found.streams["edit"]
    assert (place.file, place.line) == (0, 5)
    with open(path, "rb") as file:
        file.seek(place.offset)
        assert json.loads(file.readline())["instruction"] == "mend it"


def test_byte_order_marks_and_windows_line_ends_do_no_harm(lines):
    text = b"\xef\xbb\xbf" + lines.t2i(2).write().read_bytes().replace(b"\n", b"\r\n")
    path = lines.folder / "windows.jsonl"
    path.write_bytes(text)
    assert (scan(path).total, scan(path).bad) == (2, [])


def test_the_identity_follows_the_content_and_how_lines_are_read(lines, tmp_path):
    path = lines.t2i().write("a.jsonl")
    first = scan(path).identity
    assert first == scan(lines.write("b.jsonl")).identity
    for options in (JsonlOptions("t2i"), JsonlOptions(image_root=tmp_path)):
        assert first != JsonlSource((path,), options).scan().identity
    assert first != scan(lines.t2i().write("c.jsonl")).identity


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*nothing\.jsonl"):
        scan(tmp_path / "nothing.jsonl")


def test_files_without_a_line_are_named(lines):
    with pytest.raises(UserError, match=r"no lines in .*lines\.jsonl: nothing to prepare"):
        scan(lines.raw(" ").write())


def test_lines_of_several_files_are_read_from_their_places(lines):
    first = lines.t2i(2).raw("").edit().write("a.jsonl")
    lines.lines.clear()
    second = lines.t2i(3, id="mine").write("b.jsonl")
    source = JsonlSource((first, second))
    items = source.scan().streams["generate"]
    read = list(source.read("generate", items[1:4]))
    assert [where for where, _ in read] == [
        {"file": "a.jsonl", "line": 2},
        {"file": "b.jsonl", "line": 1},
        {"file": "b.jsonl", "line": 2},
    ]
    assert [make().id for _, make in read] == ["a-2", "mine", "mine"]


def test_an_unusable_line_raises_when_it_is_made_and_is_found_by_a_check(lines):
    path = lines.t2i().t2i(1, image=["gone.png"]).t2i(1, image=[lines.image(b"junk")]).write()
    source = JsonlSource((path,))
    items = source.scan().streams["generate"]
    (_, make), *_ = source.read("generate", items[1:2])
    with pytest.raises(BadItem, match="missing_image"):
        make()
    # A check does not decode: the third line passes it.
    entries = list(source.check("generate", items))
    assert [(entry["line"], entry["kind"]) for entry in entries] == [(2, "missing_image")]


def test_ids_that_occur_again_are_counted_over_all_streams_and_files(lines):
    lines.t2i(1, id="x").edit(1, id="y").edit(1, id="x").t2i(2, id=7).t2i(2)
    path = lines.write()
    note = scan(path).notes["duplicate_id"]
    assert (note.count, note.first) == (2, "lines.jsonl, line 3")
    # Ids that are made up from the file's name repeat where two files have the same name.
    (lines.folder / "other").mkdir()
    other = lines.folder / "other" / "lines.jsonl"
    other.write_bytes(path.read_bytes())
    assert scan(path, other).notes["duplicate_id"].count == 2 + 7


def test_images_without_a_part_in_any_record_are_counted(lines):
    lines.t2i().compose(5).edit(1, image=[lines.image()] * 3)
    note = scan(lines.write()).notes["surplus_image"]
    assert (note.count, note.first) == (3, "lines.jsonl, line 2")


def test_a_clean_file_has_nothing_to_note(lines):
    assert scan(lines.t2i(2).edit().compose(3).write()).notes == {}
    lines.lines.clear()
    assert scan(lines.raw("{oops").write()).notes == {}


def test_texts_are_read_only_for_a_tokenizer_of_a_given_size(lines):
    source = JsonlSource((lines.edit().raw("{oops").write(),))
    assert source.tokenizer(None) is None
    trained = source.tokenizer(200)
    assert trained is not None
    assert trained.vocab_size == 200
    assert len(trained.pieces("mend it")) == 2


def test_places_are_a_sequence_whose_slices_are_small_to_send():
    places = Places()
    expected = [Place(k % 2, 10 * k, k + 1) for k in range(1000)]
    for place in expected:
        places.add(place)
    assert (len(places), list(places)) == (1000, expected)
    assert (places[3], places[-1]) == (expected[3], expected[-1])
    part = places[5:9]
    assert isinstance(part, Places)
    assert list(part) == expected[5:9]
    assert len(pickle.dumps(part)) < 400
    assert list(pickle.loads(pickle.dumps(part))) == expected[5:9]
    with pytest.raises(IndexError):
        places[1000]
    with pytest.raises(ValueError, match="runs"):
        places[::2]
    assert np.asarray(places.flat).size == 3000
