"""The rows that docs/scale.md shows: all there, all fitting, and the page is made from them."""

from __future__ import annotations

import json

import pytest

from benchmarks import scale_page, scale_table
from unialign_jax import config as configs
from unialign_jax.planning.batch import cases

ROWS = json.loads(scale_table.RESULTS.read_text())
# Of the estimates, stage 1: what the project wants to reach at least.
LEAST_MFU = {"v5e:16x16": 0.35, "v5p:4x4x4": 0.45, "v6e:16x16": 0.25}


@pytest.mark.parametrize("stage", scale_table.STAGES)
@pytest.mark.parametrize("target", scale_table.TARGETS, ids=lambda t: f"{t.name}x{t.slices}")
def test_every_program_of_a_stage_has_a_setting_that_fits(target, stage):
    config = configs.to_plain(configs.load_config(stage))
    rows = [
        row
        for row in ROWS
        if (row["config"], row["topology"], row["slices"]) == (stage, target.name, target.slices)
    ]
    wanted = {(case.task, case.conditions) for case in cases(config, "")}
    assert wanted <= {(row["task"], row["conditions"]) for row in rows}
    for row in rows:
        assert row["fits"] and not row["estimated"]
        assert row["hbm_gib"]["total"] <= row["hbm_gib"]["limit"]
        assert row["per_chip_batch"] >= 1


@pytest.mark.parametrize(("topology", "least"), LEAST_MFU.items())
def test_the_estimates_of_stage_1_reach_their_targets(topology, least):
    key = f"stage1_pretrain {topology} 1 generate full"
    (row,) = [row for row in ROWS if row["key"] == key]
    assert not row["quick"]
    assert row["estimate"]["mfu"] >= least


def test_no_estimate_beats_its_bound():
    rows = [row for row in ROWS if row["estimate"]]
    assert len({row["topology"].partition(":")[0] for row in rows}) == 4
    for row in rows:
        assert row["estimate"]["mfu"] < row["bound"]["mfu"], row["key"]
        # Nor with element-wise work at the memory's peak.
        assert row["estimate"]["elementwise_at_peak"]["mfu"] < row["bound"]["mfu"], row["key"]


def test_a_chip_needs_the_same_memory_and_work_however_many_there_are():
    """Weak scaling over the rows of the table: chips grow, the samples of each do not."""
    rows = [row for row in ROWS if row["config"] == "weak"]
    assert {(row["topology"], row["slices"]) for row in rows} == set(scale_table.WEAK)
    for of in (
        lambda row: row["hbm_gib"]["total"],
        lambda row: row["hbm_gib"]["arguments"],
        lambda row: row["flops"]["hardware"],
    ):
        values = [of(row) for row in rows]
        assert max(values) <= 1.05 * min(values)


def test_the_page_is_made_from_the_rows():
    page = scale_page.PAGE.read_text()
    assert scale_page.filled(page, ROWS) == page
