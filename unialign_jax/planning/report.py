"""Plans as data: the JSON of `unialign plan --json`, and what it costs."""

from __future__ import annotations

import dataclasses
from typing import Any

from unialign_jax.planning import bounds, collectives
from unialign_jax.planning.advice import advice
from unialign_jax.planning.program import Plan


def to_json(plan: Plan, *, steps: int, share: float = 1.0, price: float = 0.0) -> dict[str, Any]:
    """One program as the plain values of DESIGN.md section 4, with details.

    FLOPs and bytes are per device and step; `hbm_gib` is per device.

    Args:
        plan: the program.
        steps: of the stage.
        share: of those steps that run this program.
        price: dollars per chip and hour; 0 for none.
    """
    chip, flops = plan.topology.chip, plan.flops
    roof = plan.roofline.get("overlapped", {})
    return {
        "topology": plan.topology.name,
        "slices": plan.topology.slices,
        "chips": plan.topology.chips,
        "devices": plan.topology.devices,
        "mesh": plan.mesh,
        "task": plan.case.task,
        "conditions": plan.case.conditions,
        "per_chip_batch": _short(plan.per_chip_batch),
        "global_batch": plan.setup.train.global_batch,
        "micro_batches": plan.setup.train.micro_batches,
        "remat": plan.setup.model.config.remat,
        "fits": plan.memory.fits,
        "estimated": plan.estimated,
        "quick": plan.quick,
        "hbm_gib": plan.memory.gib(),
        "largest_buffers": [
            {"gib": round(size / 2**30, 3), "array": array, "where": where}
            for size, array, where in plan.memory.largest
        ],
        "flops": {
            "model": flops.model,
            "hardware": flops.hardware,
            "text_encoder": flops.text_encoder,
            "recomputation": flops.repeated,
            "optimizer": flops.optimizer,
            "attention_kernels": flops.attention,
            "model_per_sample": flops.model / plan.per_chip_batch,
        },
        "collectives": collectives.summary(plan.collectives),
        "collectives_by_axis": collectives.by_axis(plan.collectives),
        "synchronous": _synchronous(plan),
        "bound": {
            "step_seconds": roof.get("step_seconds"),
            "mfu": roof.get("mfu"),
            "by": roof.get("by"),
            "times": plan.roofline.get("times"),
            "serial": plan.roofline.get("serial"),
        },
        "estimate": plan.estimate or None,
        "peaks": {
            "tflops": chip.flops / 1e12,
            "hbm_gb_s": chip.hbm_bytes / 1e9,
            "ici_gb_s_all_links": chip.ici_all / 1e9,
            "ici_gb_s_one_ring": chip.ici_ring / 1e9,
            "dcn_gb_s": chip.dcn / 1e9,
            "matrix_unit_width": chip.array_width,
            "clock_ghz": chip.clock / 1e9,
        },
        "heaviest": [
            {"cycles": cycles, "executions": count, "kind": kind, "where": where}
            for cycles, count, kind, where in (plan.work.heaviest if plan.work else [])
        ],
        "stage": stage(plan, steps=steps, share=share, price=price),
        "advice": advice(plan),
        "compiler_message": plan.memory.message,
        "compile_seconds": round(plan.seconds, 1),
    }


def stage(plan: Plan, *, steps: int, share: float, price: float) -> dict[str, Any]:
    """Chip-hours of this program's part of a stage, by each of the three step times."""
    part = steps * share
    result: dict[str, Any] = {"steps": steps, "share": share}
    times = {
        "overlapped": plan.roofline.get("overlapped", {}).get("step_seconds"),
        "estimate": plan.estimate.get("step_seconds"),
        "serial": plan.roofline.get("serial", {}).get("step_seconds"),
    }
    for name, seconds in times.items():
        if seconds is not None:
            hours = seconds * part * plan.topology.chips / 3600
            result[f"chip_hours_{name}"] = hours
            if price:
                result[f"cost_{name}"] = hours * price
    return result


def _synchronous(plan: Plan) -> list[dict[str, Any]]:
    """Collectives that nothing hides, those that take longest first."""
    ring = plan.topology.chip.ici_ring
    rows = [
        {
            **{key: value for key, value in dataclasses.asdict(one).items() if key != "region"},
            "seconds_one_ring": one.executions * one.bytes / ring,
        }
        for one in plan.collectives
        if one.synchronous
    ]
    return sorted(rows, key=lambda row: -row["seconds_one_ring"])[:20]


def whole_stage(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Sums over the programs of a stage of what `stage` gives."""
    total: dict[str, float] = {}
    for row in rows:
        for key, value in row["stage"].items():
            if key.startswith(("chip_hours", "cost")):
                total[key] = total.get(key, 0.0) + value
    return total


def _short(value: float) -> float | int:
    return int(value) if value == int(value) else value


def best_seconds(plan: Plan) -> float:
    """What plans are compared by: the estimate, where there is none the serial bound."""
    if plan.estimate:
        return float(plan.estimate["step_seconds"])
    return float(plan.roofline["serial"]["step_seconds"]) if plan.roofline else float("inf")


def samples_per_second(plan: Plan) -> float:
    """Over all devices, by `best_seconds`."""
    return plan.setup.train.global_batch / best_seconds(plan)


def achieved(plan: Plan) -> float:
    """MFU at `best_seconds`."""
    return bounds.mfu(plan.flops, best_seconds(plan), plan.topology.chip)
