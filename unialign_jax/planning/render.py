"""Plans as text for a terminal."""

from __future__ import annotations

from typing import Any

_NAMES = {
    "matmul": "matrix products",
    "elementwise": "element-wise work",
    "copies": "copies and layouts",
    "other": "sorts, gathers, random numbers",
    "attention": "attention kernels",
    "other_kernels": "other kernels",
    "synchronous_collectives": "collectives that nothing hides",
    "unhidden_collectives": "what outlasts the work that hides it",
    "dcn": "gradients between slices",
    "compute": "compute",
    "hbm": "memory traffic",
    "interconnect": "links",
    "interconnect_one_ring": "links as one ring",
}


def render(row: dict[str, Any]) -> str:
    """A program's plan, from its JSON."""
    mesh = " x ".join(f"{axis} {n}" for axis, n in row["mesh"].items() if n > 1) or "one device"
    slices = f", {row['slices']} slices" if row["slices"] > 1 else ""
    task = row["task"] + (f" with {row['conditions']} condition(s)" if row["conditions"] else "")
    verdict = "fits" if row["fits"] else "DOES NOT FIT"
    if row["estimated"]:
        verdict += " (a guess from arithmetic: there is no compiler for it here)"
    micro = f" in {row['micro_batches']} pieces" if row["micro_batches"] > 1 else ""
    gib = row["hbm_gib"]
    lines = [
        f"{task}: {verdict}",
        f"  {row['topology']}{slices}, {row['chips']} chips, mesh {mesh}, "
        f"{row['per_chip_batch']} samples per device{micro} ({row['global_batch']} in a step), "
        f"remat {row['remat']}",
        f"  memory       {gib['total']:.2f} of {gib['limit']:.2f} GiB: arguments "
        f"{gib['arguments']:.2f}, temporaries {gib['temporaries']:.2f}",
    ]
    for buffer in row["largest_buffers"][:4]:
        where = buffer["where"].replace("jit(step)/", "")
        lines.append(f"               {buffer['gib']:8.3f} GiB  {buffer['array']}  {where[-60:]}")
    flops = row["flops"]
    lines.append(
        f"  TFLOP        model {flops['model'] / 1e12:.2f}, text encoder "
        f"{flops['text_encoder'] / 1e12:.2f}, repeated {flops['recomputation'] / 1e12:.2f}, "
        f"executed {flops['hardware'] / 1e12:.2f}; model per sample "
        f"{flops['model_per_sample'] / 1e12:.2f}"
    )
    lines += _collectives(row) + _times(row)
    lines += [f"  advice       {line}" for line in row["advice"]]
    return "\n".join(lines)


def _collectives(row: dict[str, Any]) -> list[str]:
    lines = []
    for one in row["collectives_by_axis"][:8]:
        how = "blocks" if one["synchronous"] else "hidden"
        lines.append(
            f"  {'collectives' if not lines else '':<12} {one['kind']:<18} {one['axes']:<10} "
            f"{how}  {one['count']:6d} x  {one['bytes'] / 1e9:9.3f} GB"
        )
    return lines


def _times(row: dict[str, Any]) -> list[str]:
    bound, lines = row["bound"], []
    if bound["step_seconds"] is not None:
        lines.append(
            f"  at best      {_ms(bound['step_seconds'])}, {100 * bound['mfu']:.0f} % MFU, "
            f"set by {_NAMES.get(bound['by'], bound['by'])} ("
            + ", ".join(f"{_NAMES.get(k, k)} {_ms(v)}" for k, v in bound["times"].items() if v)
            + ")"
        )
        serial = bound["serial"]
        lines.append(
            f"  one by one   {_ms(serial['step_seconds'])}, {100 * serial['mfu']:.0f} % MFU"
        )
    estimate = row["estimate"]
    if estimate:
        what = "a guess" if row["estimated"] else "XLA's cycles, attention kernels at"
        if not row["estimated"]:
            what += f" {100 * estimate['attention_efficiency']:.0f} %"
        lines.append(
            f"  estimate     {_ms(estimate['step_seconds'])}, "
            f"{100 * estimate['mfu']:.0f} % MFU ({what})"
        )
        for name, seconds in estimate["parts"].items():
            lines.append(f"               {1e3 * seconds:8.1f} ms  {_NAMES.get(name, name)}")
    hours = {k.removeprefix("chip_hours_"): v for k, v in row["stage"].items() if "hours" in k}
    if hours:
        text = ", ".join(f"{value:,.0f} ({name})" for name, value in hours.items())
        lines.append(
            f"  chip-hours   {text} for {row['stage']['share']:.0%} of "
            f"{row['stage']['steps']} steps"
        )
    costs = {k.removeprefix("cost_"): v for k, v in row["stage"].items() if "cost" in k}
    if costs:
        lines.append(
            "  cost         " + ", ".join(f"${v:,.0f} ({name})" for name, v in costs.items())
        )
    return lines


def _ms(seconds: float) -> str:
    """Milliseconds with three digits."""
    value = 1e3 * seconds
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"
