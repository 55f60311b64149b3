"""SemGen-Bench's lines become text-to-image lines."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from unialign_jax.data.prepare import PrepareOptions, prepare
from unialign_jax.data.prepared import Prepared
from unialign_jax.data.sources import semgen
from unialign_jax.data.sources.jsonl import JsonlOptions
from unialign_jax.data.sources.jsonl_source import JsonlSource
from unialign_jax.errors import UserError


@pytest.fixture
def bench(repository):
    """The real benchmark, where it is."""
    default = repository.parent / "shared" / "data" / "semgen_bench"
    folder = Path(os.environ.get("UNIALIGN_SEMGEN_BENCH", default))
    if not (folder / "semgen_bench.jsonl").is_file():
        pytest.skip(f"no SemGen-Bench at {folder} (UNIALIGN_SEMGEN_BENCH names another place)")
    return folder


def entry(number: int, **more: object) -> str:
    line = {"image_id": number, "image_path": f"images/{number}.jpg", "t2i_long": "long text"}
    return json.dumps({**line, "t2i_complex": "short", **more}) + "\n"


def test_lines_take_the_caption_asked_for(tmp_path):
    (tmp_path / "semgen_bench.jsonl").write_text(entry(1) + entry(2) + entry(5))
    out = tmp_path / "t2i.jsonl"
    assert semgen.write_t2i(tmp_path, out, caption="t2i_complex", limit=2) == 2
    assert [json.loads(line) for line in out.read_text().splitlines()] == [
        {
            "id": f"semgen-{number}",
            "image": [f"images/{number}.jpg"],
            "conversations": [{"from": "human", "value": "short"}],
        }
        for number in (1, 2)
    ]


def test_a_folder_without_the_benchmark_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no semgen_bench\.jsonl in"):
        semgen.write_t2i(tmp_path, tmp_path / "out.jsonl")


@pytest.mark.parametrize("content", ["{}\n", "{oops\n"])
def test_a_line_of_something_else_is_named(tmp_path, content):
    (tmp_path / "semgen_bench.jsonl").write_text(entry(1) + content)
    with pytest.raises(UserError, match="line 2: not a SemGen-Bench line"):
        semgen.write_t2i(tmp_path, tmp_path / "out.jsonl")


def test_the_real_benchmark_prepares_without_a_bad_line(bench, tmp_path):
    count = semgen.write_t2i(bench, tmp_path / "t2i.jsonl", limit=12)
    source = JsonlSource((tmp_path / "t2i.jsonl",), JsonlOptions(image_root=bench))
    summary = prepare(source, tmp_path / "out", PrepareOptions(train_tokenizer=600))
    assert (count, summary.counts, summary.bad) == (12, {"generate": 12}, {})
    record = Prepared(tmp_path / "out").source("generate")[0]
    # Baseline JPEG in RGB is stored as it came.
    assert record.target == (bench / "images" / "1.jpg").read_bytes()
    assert len(record.captions[0].split()) > 40
