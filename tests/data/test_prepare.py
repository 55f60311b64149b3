"""Preparing is resumable shard by shard, counts what it leaves out, and stops when that is much."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

from unialign_jax.data import records, shards
from unialign_jax.data.prepare import PrepareOptions, bad_limit, fingerprint, prepare, survey
from unialign_jax.data.prepared import Prepared
from unialign_jax.data.shards import StoreOptions
from unialign_jax.data.sources.jsonl_source import JsonlSource
from unialign_jax.data.tokenizer import TextTokenizer
from unialign_jax.errors import UserError


def options(shard_count=None, size=None, encoding="png", max_pixels=1 << 26, **more):
    return PrepareOptions(StoreOptions(shard_count, size, encoding, max_pixels), **more)


def source(*paths):
    return JsonlSource(paths)


def files(out):
    """Every file below a folder but the bookkeeping, by relative path."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and "source" not in path.parts
    }


def bad_log(out):
    return [json.loads(line) for line in (out / "bad_records.jsonl").read_text().splitlines()]


def read_all(out):
    data = Prepared(out)
    return [data.source(s.name)[k] for s in data.streams for k in range(s.size)]


def test_lines_become_records_in_order_over_the_asked_number_of_shards(lines, tmp_path):
    path = lines.t2i(7).edit(2).write()
    summary = prepare(source(path), tmp_path / "out", options(3))
    assert summary.counts == {"generate": 7, "edit": 2}
    assert (summary.bad, summary.shards_written, summary.shards_kept) == ({}, 5, 0)
    info = Prepared(tmp_path / "out").info
    sizes = [[shard["examples"] for shard in stream["shards"]] for stream in info["streams"]]
    assert sizes == [[2, 2, 3], [1, 1]]
    items = read_all(tmp_path / "out")
    assert [item.id for item in items] == [f"lines-{k}" for k in range(1, 10)]
    assert all((item.height, item.width) == (20, 26) for item in items)


def test_several_files_and_formats_go_into_one_data_set(lines, tmp_path):
    first = lines.t2i(2).write("a.jsonl")
    lines.lines.clear()
    second = lines.compose(2).compose(3).edit(map_kind="depth").write("b.jsonl")
    summary = prepare(source(first, second), tmp_path / "out", options())
    assert summary.counts == {"generate": 2, "perceive": 1, "compose": 2}
    names = [stream.name for stream in Prepared(tmp_path / "out").streams]
    assert names == ["generate", "perceive", "compose_2", "compose_3"]
    assert {item.id for item in read_all(tmp_path / "out")} == {"a-1", "a-2", "b-1", "b-2", "b-3"}


def test_a_second_start_does_nothing_and_changes_nothing(lines, tmp_path):
    path = lines.t2i(4).edit(2).write()
    prepare(source(path), tmp_path / "out", options(2, train_tokenizer=200))
    before = files(tmp_path / "out")
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*array_record*")}
    summary = prepare(source(path), tmp_path / "out", options(2, train_tokenizer=200))
    assert (summary.shards_written, summary.shards_kept) == (0, 4)
    assert files(tmp_path / "out") == before
    assert times == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*array_record*")}


def test_a_missing_or_cut_shard_alone_is_built_again(lines, tmp_path):
    out = tmp_path / "out"
    path = lines.t2i(6).write()
    prepare(source(path), out, options(3))
    before = files(out)
    shard = records.stream_directory(out, "generate")
    (shard / records.shard_name("generate", 0, 3)).unlink()
    cut = shard / records.shard_name("generate", 2, 3)
    cut.write_bytes(cut.read_bytes()[:99])
    summary = prepare(source(path), out, options(3))
    assert (summary.shards_written, summary.shards_kept) == (2, 1)
    assert files(out) == before


def test_a_stop_in_the_middle_keeps_finished_shards(lines, tmp_path, monkeypatch):
    out = tmp_path / "out"
    path = lines.t2i(8).write()
    expected = tmp_path / "expected"
    prepare(source(path), expected, options(4))

    real, built = shards.build, []

    def stopped(job, advance):
        if len(built) == 2:
            # A process killed while it writes leaves a temporary file like this one.
            job.file.with_name(f"{records.TEMPORARY_PREFIX}{job.file.name}-1").write_text("half")
            raise KeyboardInterrupt
        built.append(job)
        return real(job, advance)

    monkeypatch.setattr(shards, "build", stopped)
    with pytest.raises(KeyboardInterrupt):
        prepare(source(path), out, options(4))
    assert not (out / "dataset.json").exists()
    with pytest.raises(UserError, match="is not finished"):
        Prepared(out)
    monkeypatch.setattr(shards, "build", real)
    summary = prepare(source(path), out, options(4))
    assert (summary.shards_written, summary.shards_kept) == (2, 2)
    assert files(out) == files(expected)


KILLED = """
import sys, time
from pathlib import Path
from unialign_jax.data import shards
from unialign_jax.data.prepare import PrepareOptions, prepare
from unialign_jax.data.sources.jsonl_source import JsonlSource
real = shards.finish_record
def slow(record, store):
    time.sleep(0.02)
    return real(record, store)
shards.finish_record = slow
source = JsonlSource((Path(sys.argv[1]),))
prepare(source, Path(sys.argv[2]), PrepareOptions(shards.StoreOptions(shards=8)))
"""


def test_a_killed_process_resumes_to_the_same_files(lines, tmp_path):
    out, expected = tmp_path / "out", tmp_path / "expected"
    path = lines.t2i(64).write()
    prepare(source(path), expected, options(8))
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path), str(out)])
    try:
        deadline = time.monotonic() + 60
        while len(list(out.glob("manifest/generate-*.json"))) < 3:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = {p: p.stat().st_mtime_ns for p in out.rglob("generate-train*")}
    assert 3 <= len(kept) < 8
    summary = prepare(source(path), out, options(8))
    assert summary.shards_kept >= 3
    assert summary.shards_kept + summary.shards_written == 8
    # A shard whose manifest entry was not written yet is built again; the others are untouched.
    touched = [p for p, stamp in kept.items() if p.stat().st_mtime_ns != stamp]
    assert len(touched) <= 1
    assert files(out) == files(expected)


def test_worker_processes_write_the_same_files(lines, tmp_path):
    path = lines.t2i(6).raw("{oops").edit(2).t2i(1, image=["no.png"]).write()
    for workers in (0, 2):
        prepare(
            source(path), tmp_path / f"w{workers}", options(3, workers=workers, max_bad_share=0.5)
        )
    assert files(tmp_path / "w0") == files(tmp_path / "w2")


def test_bad_lines_are_left_out_counted_and_listed(lines, tmp_path, picture):
    lines.t2i(2).raw("{oops").add(image=[lines.image(b"junk")], conversations=[{"value": "a"}])
    lines.edit(image=["gone.png", "gone.png"]).t2i()
    big = lines.image(picture(height=70, width=70))
    lines.add(image=[big], conversations=[{"value": "a"}])
    store = options(max_pixels=4000, max_bad_share=0.9)
    summary = prepare(source(lines.write()), tmp_path / "out", store)
    assert summary.counts == {"generate": 3}
    assert summary.bad == {"json": 1, "undecodable": 1, "missing_image": 1, "too_large": 1}
    assert [(e["line"], e["kind"]) for e in bad_log(tmp_path / "out")] == [
        (3, "json"),
        (4, "undecodable"),
        (5, "missing_image"),
        (7, "too_large"),
    ]
    assert all(e["reason"] and e["file"] == "lines.jsonl" for e in bad_log(tmp_path / "out"))
    assert len(read_all(tmp_path / "out")) == 3


def test_the_limit_is_a_share_but_at_least_one():
    assert bad_limit(0.01, 1000) == 10
    assert bad_limit(0.01, 5) == 1
    assert bad_limit(0, 1000) == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_bad_lines_stop_with_a_summary(lines, tmp_path, workers):
    for _ in range(3):
        lines.t2i(2).t2i(1, image=["gone.png"])
    path = lines.write()
    said = r"bad lines among 9 \(\d missing_image\), 1 are allowed.*--max-bad-share.*--retry-bad"
    with pytest.raises(UserError, match=said):
        prepare(source(path), tmp_path / "out", options(3, workers=workers))
    assert len(bad_log(tmp_path / "out")) >= 2
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_one_bad_line_among_few_is_allowed_unless_the_share_is_zero(lines, tmp_path):
    path = lines.t2i(2).raw("{oops").write()
    assert prepare(source(path), tmp_path / "a", options()).bad == {"json": 1}
    with pytest.raises(UserError, match="1 bad lines among 3"):
        prepare(source(path), tmp_path / "b", options(max_bad_share=0))


def test_mended_images_are_taken_in_with_retry_bad(lines, tmp_path, picture):
    path = lines.t2i(3).add(image=["late.png"], conversations=[{"value": "a"}]).write()
    assert prepare(source(path), tmp_path / "out", options(2)).bad == {"missing_image": 1}
    (lines.folder / "late.png").write_bytes(picture(3))
    assert prepare(source(path), tmp_path / "out", options(2)).bad == {"missing_image": 1}
    summary = prepare(source(path), tmp_path / "out", options(2, retry_bad=True))
    assert (summary.bad, summary.counts) == ({}, {"generate": 4})
    assert (summary.shards_written, summary.shards_kept) == (1, 1)
    assert bad_log(tmp_path / "out") == []


def test_a_stream_whose_every_line_is_bad_is_left_out(lines, tmp_path):
    path = lines.t2i(3).edit(image=["gone.png", "gone.png"]).write()
    assert prepare(source(path), tmp_path / "out", options()).counts == {"generate": 3}
    assert [s.name for s in Prepared(tmp_path / "out").streams] == ["generate"]


def test_nothing_usable_is_an_error(lines, tmp_path):
    with pytest.raises(UserError, match="none of 1 lines is usable"):
        prepare(source(lines.raw("{oops").write()), tmp_path / "out", options())
    lines.lines.clear()
    with pytest.raises(UserError, match="no lines in"):
        prepare(source(lines.raw("").write()), tmp_path / "out", options())


def test_another_source_or_other_options_need_overwrite(lines, tmp_path):
    out = tmp_path / "out"
    prepare(source(lines.t2i(3).edit().write()), out, options(train_tokenizer=200))
    lines.lines.clear()
    path = lines.t2i(2).write()
    for other in (options(), options(size=8)):
        with pytest.raises(UserError, match="--overwrite"):
            prepare(source(path), out, other)
    assert len(read_all(out)) == 4
    summary = prepare(source(path), out, options(overwrite=True))
    assert summary.counts == {"generate": 2}
    assert not (out / "edit").exists() or not list((out / "edit").rglob("*array_record*"))
    assert not (out / "tokenizer.json").exists()
    assert len(read_all(out)) == 2


def test_images_can_be_scaled_before_storing(lines, tmp_path):
    path = lines.edit(2).write()
    prepare(source(path), tmp_path / "png", options(size=10))
    prepare(source(path), tmp_path / "jpeg", options(size=10, encoding="jpeg"))
    for name, magic in (("png", b"\x89PNG"), ("jpeg", b"\xff\xd8")):
        for item in read_all(tmp_path / name):
            assert (item.height, item.width) == (10, 13)
            assert item.target.startswith(magic)
            assert item.conditions[0].startswith(magic)


def test_a_tokenizer_is_trained_on_all_texts_or_copied(lines, tmp_path):
    path = lines.edit(2).write()
    prepare(source(path), tmp_path / "a", options(train_tokenizer=180))
    trained = TextTokenizer.from_file(Prepared(tmp_path / "a").tokenizer_path())
    assert trained.vocab_size == 180
    assert len(trained.pieces("mend it")) == 2
    prepare(source(path), tmp_path / "b", options(tokenizer=tmp_path / "a" / "tokenizer.json"))
    copied = (tmp_path / "b" / "tokenizer.json").read_text()
    assert copied == (tmp_path / "a" / "tokenizer.json").read_text()
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(UserError, match=r"broken\.json is not a tokenizer"):
        prepare(source(path), tmp_path / "c", options(tokenizer=tmp_path / "broken.json"))
    assert not (tmp_path / "c").exists()


def test_the_fingerprint_of_lines_stays_what_finished_data_sets_have(lines, tmp_path):
    path = lines.raw('{"image": ["a.png"], "conversations": [{"value": "a"}]}').write()
    code = fingerprint(source(path).scan(), StoreOptions())
    assert code == "12014a5af18f3f8b4e39eae3bbb1abcd5a5302653abe30866c2992df116c1476"


def test_what_is_kept_but_worth_telling_is_written_down(lines, tmp_path):
    path = lines.t2i(3, id="same").write()
    summary = prepare(source(path), tmp_path / "out", options())
    assert (summary.bad, summary.counts) == ({}, {"generate": 3})
    note = {"duplicate_id": {"count": 2, "first": "lines.jsonl, line 2"}}
    assert Prepared(tmp_path / "out").info["notes"] == note


def test_progress_reaches_the_number_of_lines(lines, tmp_path):
    path = lines.t2i(5).raw("{oops").write()
    for _ in range(2):
        totals, steps = [], []
        prepare(
            source(path), tmp_path / "out", options(2), on_start=totals.append, advance=steps.append
        )
        assert totals == [6]
        assert sum(steps) == 6


def test_a_survey_counts_without_writing(lines, tmp_path):
    path = lines.t2i(2).edit().raw("{oops").t2i(1, image=["gone.png"]).write()
    before = files(tmp_path)
    summary = survey(source(path))
    assert summary.counts == {"generate": 2, "edit": 1}
    assert summary.bad == {"json": 1, "missing_image": 1}
    assert files(tmp_path) == before


def test_an_unwritable_output_is_named(lines, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match=r"cannot write .*out"):
        prepare(source(lines.t2i().write()), tmp_path / "out", options())
