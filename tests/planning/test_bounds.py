"""Seconds follow from peaks: checked with round numbers on a v5e."""

from __future__ import annotations

import pytest

from unialign_jax.planning import bounds
from unialign_jax.planning.bounds import StepFlops
from unialign_jax.planning.collectives import Collective
from unialign_jax.planning.hardware import CHIPS
from unialign_jax.planning.work import Work

CHIP = CHIPS["v5e"]
# One second of plain products at 197 TFLOP/s; attention of head dimension 64 beside it.
FLOPS = StepFlops(
    model=147.75e12,
    text_encoder=19.7e12,
    optimizer=0.0,
    repeated=49.25e12,
    attention=19.7e12,
    attention_depth=64,
)


def collective(*, synchronous, size, executions=1, region="body"):
    return Collective(
        "all-gather", "bf16[8]", "fsdp", 64, size, executions, synchronous, region, ""
    )


def work(**values):
    plain = {
        "cycles": {"matmul": 1.5e9, "elementwise": 0.75e9, "copies": 0.0, "other": 0.0},
        "region_cycles": {"body": 2.25e9},
        "hbm_bytes": 0.0,
        "elementwise_bytes": 81.9e9,
        "kernels": {},
        "kernel_bytes": 0.0,
        "heaviest": [],
    }
    return Work(**{**plain, **values})


def test_a_head_dimension_of_64_fills_half_of_a_matrix_unit_128_deep():
    assert CHIP.matrix_share(64) == 0.5
    assert CHIPS["v6e"].matrix_share(64) == 0.25
    assert CHIPS["v5p"].matrix_share(512) == 1.0
    # 197 TFLOP of plain products and 19.7 in attention at half of the rate.
    assert bounds.compute_seconds(FLOPS, CHIP) == pytest.approx(1.0 + 0.2)


def test_mfu_counts_the_model_and_its_encoder_and_no_repetition():
    assert bounds.mfu(FLOPS, 2.0, CHIP) == pytest.approx((147.75 + 19.7) / (2 * 197))


def test_the_slowest_of_compute_memory_and_links_sets_the_bound():
    roof = bounds.roofline(FLOPS, hbm_bytes=819e9 * 3, ici_bytes=180e9, dcn_bytes=0.0, chip=CHIP)
    assert roof["overlapped"]["by"] == "hbm"
    assert roof["overlapped"]["step_seconds"] == pytest.approx(3.0)
    # One after the other, the links as one ring: half of their speed.
    assert roof["serial"]["step_seconds"] == pytest.approx(1.2 + 3.0 + 2.0)


def test_the_estimate_adds_cycles_kernels_and_what_nothing_hides():
    found = [
        collective(synchronous=True, size=9e9, executions=2),
        collective(synchronous=False, size=9e9),
    ]
    estimate = bounds.estimate(FLOPS, work(), found, 0.0, CHIP, efficiency=0.5)
    assert estimate["parts"] == pytest.approx(
        {
            "matmul": 1.0,
            "elementwise": 0.5,
            "attention": 0.4,
            "synchronous_collectives": 0.2,
        }
    )
    assert estimate["step_seconds"] == pytest.approx(2.1)
    assert estimate["by"] == "matmul"
    # 81.9 GB at 819 GB/s in place of half a second.
    assert estimate["elementwise_at_peak"]["step_seconds"] == pytest.approx(1.7)


def test_asynchronous_collectives_cost_what_outlasts_their_own_loop():
    found = [
        collective(synchronous=False, size=90e9, executions=2),
        collective(synchronous=False, size=9e9, region="entry"),
    ]
    # Two seconds of links over 1.5 of work in the loop; nothing runs beside the one in the entry.
    assert bounds.unhidden(work(), found, CHIP) == pytest.approx(0.5 + 0.1)
