"""`unialign prepare`: what the shell sees: files, exit codes, messages without a traceback."""

from __future__ import annotations

import io
import json
import shutil

import pytest
import tensorflow_datasets as tfds
from PIL import Image

from unialign_jax import cli
from unialign_jax.data import prepare as job
from unialign_jax.data.prepared import Prepared


@pytest.fixture
def source(tmp_path):
    """A folder with two images and lines.jsonl of one edit and two text-to-image lines."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name, colour in (("a.png", (200, 0, 0)), ("b.png", (0, 0, 200))):
        out = io.BytesIO()
        Image.new("RGB", (24, 20), colour).save(out, "PNG")
        (folder / name).write_bytes(out.getvalue())
    caption = [{"value": "a blue field"}]
    lines = [
        {"image": ["a.png", "b.png"], "instruction": "make it blue", "conversations": caption},
        {"image": ["a.png"], "conversations": [{"value": "a red field"}]},
        {"image": ["b.png"], "conversations": caption},
    ]
    (folder / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def jsonl(source, out, *more):
    return ["prepare", "jsonl", "--input", str(source / "lines.jsonl"), "--out", str(out), *more]


def add_line(source, text):
    with open(source / "lines.jsonl", "a") as file:
        file.write(text + "\n")


def test_jsonl_becomes_a_data_set_that_tfds_reads(source, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(jsonl(source, out, "--train-tokenizer", "200", "--shards", "2")) == 0
    assert "2 generate, 1 edit (3 shards written, 0 already there)" in capsys.readouterr().out
    assert Prepared(out).info["counts"] == {"generate": 2, "edit": 1}
    example = tfds.data_source("edit", data_dir=out, split="train")[0]
    assert example["instruction"] == b"make it blue"
    assert example["target"][0, 0].tolist() == [0, 0, 200]
    assert tfds.builder_from_directory(out / "generate" / "1.0.0").info.splits["train"]


def test_the_same_call_again_keeps_everything(source, tmp_path, capsys):
    call = jsonl(source, tmp_path / "out")
    assert cli.main(call) == cli.main(call) == 0
    assert "(0 shards written, 2 already there)" in capsys.readouterr().out


def test_left_out_lines_give_exit_code_3_and_are_listed(source, tmp_path, capsys):
    add_line(source, "{oops")
    assert cli.main(jsonl(source, tmp_path / "out")) == 3
    said = capsys.readouterr().out
    assert "1 of 4 lines were left out (1 json)" in said
    assert "bad_records.jsonl lists them" in said


def test_too_many_bad_lines_give_exit_code_1_and_a_summary(source, tmp_path, capsys):
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    (source / "b.png").write_bytes(b"junk")
    assert cli.main(jsonl(source, tmp_path / "out")) == 1
    said = capsys.readouterr().err
    assert "2 bad lines among 3 (2 undecodable), 1 are allowed" in said
    assert "Traceback" not in said


def test_a_dry_run_writes_nothing(source, tmp_path, capsys):
    assert cli.main(jsonl(source, tmp_path / "out", "--dry-run")) == 0
    assert "3 lines: 1 edit, 2 generate; nothing was written" in capsys.readouterr().out
    add_line(source, "{oops")
    assert cli.main(jsonl(source, tmp_path / "out", "--dry-run")) == 3
    assert "unusable: 1 json" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_an_image_root_serves_lines_from_elsewhere(source, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.move(source / "lines.jsonl", moved / "lines.jsonl")
    assert cli.main(jsonl(moved, tmp_path / "out")) == 1
    assert cli.main(jsonl(moved, tmp_path / "out", "--image-root", str(source), "--overwrite")) == 0


def test_interruption_gives_exit_code_75(source, tmp_path, capsys, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "prepare", stop)
    assert cli.main(jsonl(source, tmp_path / "out")) == 75
    assert "the same command continues" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--shards", "0"], 2, "--shards 0: at least 1"),
        (["--size", "-1"], 2, "--size -1: at least 1"),
        (["--workers", "-1"], 2, "--workers -1"),
        (["--max-bad-share", "2"], 2, "a fraction from 0 to 1"),
        (["--format", "dance"], 2, "dance"),
        (["--tokenizer", "x.json", "--train-tokenizer", "300"], 2, "not allowed with"),
        (["--tokenizer", "x.json"], 1, "no tokenizer at x.json"),
        (["--train-tokenizer", "5"], 1, "at least 128"),
        (["--image-root", "nowhere"], 1, "--image-root nowhere is not a folder"),
        (["--input", "nothing.jsonl"], 1, "cannot read nothing.jsonl"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(source, tmp_path, capsys, more, code, said):
    assert cli.main(jsonl(source, tmp_path / "out", *more)) == code
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_photos_go_through_the_same_path(tmp_path, capsys):
    out = tmp_path / "photos"
    call = ["prepare", "photos", "--out", str(out), "--size", "32", "--edits", "1"]
    assert cli.main([*call, "--dry-run"]) == 0
    assert not out.exists()
    assert cli.main(call) == 0
    assert "12 generate, 12 edit" in capsys.readouterr().out
    data = Prepared(out)
    assert data.source("generate")[0].id == "astronaut"
    assert data.source("edit")[0].conditions[0] == data.source("generate")[0].target
    assert data.tokenizer_path().is_file()
    assert (out / "source" / "LICENCES.txt").is_file()


def test_semgen_bench_lines_are_prepared_from_their_folder(source, tmp_path):
    entry = {"image_id": 1, "image_path": "a.png", "t2i_long": "long", "t2i_complex": "short"}
    (source / "semgen_bench.jsonl").write_text(json.dumps(entry) + "\n")
    out = tmp_path / "out"
    call = ["prepare", "semgen", "--input", str(source), "--out", str(out)]
    assert cli.main([*call, "--caption", "t2i_complex"]) == 0
    assert Prepared(out).source("generate")[0].captions == ("short",)


def test_repeated_ids_and_images_without_a_part_are_kept_but_reported(source, tmp_path, capsys):
    for _ in range(2):
        line = {"id": 3, "image": ["a.png", "b.png"], "conversations": [{"value": "a red field"}]}
        add_line(source, json.dumps(line))
    said = (
        "kept, but to be noted: 1 duplicate_id (the first: lines.jsonl, line 5)\n"
        "kept, but to be noted: 2 surplus_image (the first: lines.jsonl, line 4)\n"
    )
    assert cli.main(jsonl(source, tmp_path / "out", "--dry-run")) == 0
    assert said in capsys.readouterr().out
    assert cli.main(jsonl(source, tmp_path / "out")) == 0
    assert said in capsys.readouterr().out
    info = Prepared(tmp_path / "out").info
    assert info["counts"] == {"generate": 4, "edit": 1}
    assert info["notes"]["surplus_image"] == {"count": 2, "first": "lines.jsonl, line 4"}


def scenes(out, *more):
    return ["prepare", "scenes", "--out", str(out), *more]


def test_scenes_are_drawn_for_all_tasks(tmp_path, capsys):
    out = tmp_path / "scenes"
    call = scenes(out, "--records", "20", "--seed", "3", "--pixels", "32")
    assert cli.main([*call, "--dry-run"]) == 0
    assert "20 examples: 4 generate, 4 edit, 4 perceive" in capsys.readouterr().out
    assert not out.exists()
    assert cli.main(call) == 0
    assert "(6 shards written, 0 already there)" in capsys.readouterr().out
    info = Prepared(out).info
    assert info["source"] == {"name": "scenes", "level": "demo", "pixels": 32, "seed": 3}
    example = tfds.data_source("compose_2", data_dir=out, split="train")[0]
    assert [image.shape for image in example["conditions"]] == [(32, 32, 3)] * 2
    assert (out / "tokenizer.json").is_file()
    assert cli.main(scenes(out, "--records", "20", "--seed", "4")) == 1
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "counts"),
    [
        (["--records", "7", "--tasks", "answer", "edit"], {"answer": 4, "edit": 3}),
        (["--records", "edit=2", "generate=1"], {"generate": 1, "edit": 2}),
        (["--records", "compose=4", "--level", "full"], {"compose": 4}),
    ],
)
def test_records_are_shared_by_tasks_or_given_for_each(tmp_path, more, counts):
    assert cli.main(scenes(tmp_path, *more)) == 0
    assert Prepared(tmp_path).info["counts"] == counts


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--records", "0"], 2, "--records: at least 1"),
        (["--records", "many"], 2, "--records many: a number, or TASK=N with one of generate"),
        (["--records", "5", "6"], 2, "--records 5: a number, or TASK=N"),
        (["--records", "caption=5"], 2, "--records caption=5: a number, or TASK=N"),
        (["--records", "edit=5", "edit=6"], 2, "each task once"),
        (["--records", "edit=5", "--tasks", "edit"], 2, "no --tasks beside them"),
        (["--tasks", "caption"], 2, "caption"),
        (["--level", "hard"], 2, "there are demo, full"),
        (["--pixels", "20"], 2, "20 pixels: level demo is drawn at 16, 32, 64"),
        (["--seed", "-1"], 2, "seed -1: 0 or more"),
        (["--workers", "-1"], 2, "--workers -1"),
        (["--shards", "0"], 2, "--shards 0: at least 1"),
        (["--tokenizer", "x.json"], 1, "no tokenizer at x.json"),
        (["--max-pixels", "9"], 2, "unrecognised argument '--max-pixels'"),
        (["--image-root", "."], 2, "unrecognised argument '--image-root'"),
        (["--train-tokenizer", "300"], 2, "unrecognised argument '--train-tokenizer'"),
    ],
)
def test_a_wrong_call_for_scenes_says_what_is_wrong(tmp_path, capsys, more, code, said):
    assert cli.main(scenes(tmp_path / "out", *more)) == code
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["jsonl", "photos", "semgen", "scenes"])
def test_help_gives_inputs_outputs_and_an_example(name, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["prepare", name, "--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    for part in ("output (OUT/)", "dataset.json", "Exit codes", f"unialign prepare {name} "):
        assert part in said
