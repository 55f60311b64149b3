"""The TPU compiler, asked again, says what is written down: a narrow step, and a row of the table.

`python -m tests.planning.test_compiled` writes the numbers of the narrow step again.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import scale_table
from tests.planning.stage import stage
from unialign_jax import config as configs
from unialign_jax.planning import search, topology
from unialign_jax.planning.batch import Case, with_values
from unialign_jax.planning.program import plan
from unialign_jax.planning.report import to_json

NUMBERS = Path(__file__).with_name("compiled.json")


def narrow_plan():
    config = stage(data__image_size=128, data__text_length=64, mesh__fsdp=2)
    target = topology.parse("v5e:2x2")
    found = plan(config, target, Case("generate"), topology.devices(target), quick=True)
    return to_json(found, steps=1000)


def kept(row):
    return {
        "hbm_gib": row["hbm_gib"],
        "flops": row["flops"],
        "kinds": sorted(row["collectives"]),
        "fsdp_bytes": sum(
            one["bytes"] for one in row["collectives_by_axis"] if "fsdp" in one["axes"]
        ),
    }


@pytest.mark.slow
def test_a_narrow_step_compiles_for_a_slice_of_four_chips(monkeypatch):
    pytest.importorskip("libtpu")
    monkeypatch.setenv("UNIALIGN_PLAN_CACHE", "off")
    row, known = narrow_plan(), json.loads(NUMBERS.read_text())
    assert row["fits"] and not row["estimated"]
    found = kept(row)
    assert found["flops"] == pytest.approx(known["flops"], rel=1e-6)
    assert found["hbm_gib"]["limit"] == 15.75
    # Another version of the compiler may order a few buffers differently.
    assert found["hbm_gib"]["total"] == pytest.approx(known["hbm_gib"]["total"], rel=0.15)
    assert found["hbm_gib"]["arguments"] == pytest.approx(known["hbm_gib"]["arguments"], abs=2e-3)
    assert found["fsdp_bytes"] == pytest.approx(known["fsdp_bytes"], rel=0.15)


def rows_to_repeat():
    """The row of the table that compiles fastest."""
    rows = json.loads(scale_table.RESULTS.read_text()) if scale_table.RESULTS.exists() else []
    rows = [row for row in rows if row["config"] in scale_table.STAGES and row["slices"] == 1]
    return sorted(rows, key=lambda row: row["compile_seconds"])[:1]


@pytest.mark.slow
@pytest.mark.parametrize("row", rows_to_repeat(), ids=lambda row: row["key"])
def test_a_row_of_the_table_is_what_the_compiler_says_again(row, monkeypatch):
    pytest.importorskip("libtpu")
    monkeypatch.setenv("UNIALIGN_PLAN_CACHE", "off")
    config = configs.to_plain(configs.load_config(row["config"]))
    values = scale_table.settings(
        row["mesh"]["fsdp"], row["remat"], int(row["per_chip_batch"]), row["devices"]
    )
    target = topology.parse(row["topology"])
    found = plan(
        with_values(config, values),
        target,
        Case(row["task"], row["conditions"]),
        topology.devices(target),
        quick=True,
    )
    again = to_json(found, steps=1)
    assert again["fits"] == row["fits"]
    assert again["flops"]["hardware"] == pytest.approx(row["flops"]["hardware"], rel=1e-6)
    assert again["hbm_gib"]["total"] == pytest.approx(row["hbm_gib"]["total"], rel=0.1)


@pytest.mark.slow
def test_a_search_ranks_settings_that_the_compiler_grants(monkeypatch):
    pytest.importorskip("libtpu")
    monkeypatch.setenv("UNIALIGN_PLAN_CACHE", "off")
    config = stage(data__image_size=128, data__text_length=64)
    target, said = topology.parse("v5e:2x2"), []
    found = search.search(
        config,
        target,
        Case("generate"),
        topology.devices(target),
        remats=("full", "attention"),
        most=1,
        say=said.append,
    )
    (first, faster), (second, slower) = found
    assert len(said) == 2
    # What is not computed again costs memory.
    assert (first.remat, second.remat) == ("attention", "full")
    assert faster.flops.hardware < slower.flops.hardware
    assert faster.memory.fits and faster.memory.total > slower.memory.total
    assert dict(faster.mesh)["fsdp"] == 4 and "--config.mesh.fsdp=4" in first.overrides


if __name__ == "__main__":
    NUMBERS.write_text(json.dumps(kept(narrow_plan()), indent=1) + "\n")
