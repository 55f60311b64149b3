"""Writes the tables of docs/scale.md from the rows that `scale_table.py` keeps."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "scale.md"


def write(rows: list[dict]) -> None:
    """Writes the page with the tables of these rows."""
    PAGE.write_text(filled(PAGE.read_text(), rows))


def filled(text: str, rows: list[dict]) -> str:
    """The page with the tables between its markers."""
    tables = {
        "stages": stage_table(rows),
        "parts": parts_table(rows),
        "weak": weak_table(rows),
        "remat": remat_table(rows),
    }
    for name, table in tables.items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
        head, _, rest = text.partition(begin)
        _, _, tail = rest.partition(end)
        text = head + begin + table + end + tail
    return text


def stage_table(rows: list[dict]) -> str:
    """One line per program: stages that train the same task on the same chips share it."""
    lines = [
        "| topology | task | stages | mesh data x fsdp | batch per device | remat | GiB of limit | "
        "model + T5 TFLOP | MFU at best / estimate / one by one | set by |",
        "|---" * 10 + "|",
    ]
    stages: dict[str, list[str]] = {}
    best: dict[str, dict] = {}
    for row in rows:
        if row["config"] in ("weak", "remat"):
            continue
        names = ("topology", "slices", "task", "conditions", "per_chip_batch", "remat", "mesh")
        program = str([row[name] for name in names] + [row["flops"]["hardware"]])
        number = row["config"].removeprefix("stage")[0]
        stages.setdefault(program, []).append(number)
        # A full compilation says more than a quick one.
        if program not in best or not row["quick"]:
            best[program] = row
    for program, row in sorted(best.items(), key=lambda item: _place(item[1])):
        numbers = ", ".join(sorted(set(stages[program])))
        lines.append("| " + " | ".join(_cells(row, numbers)) + " |")
    return "\n".join(lines if best else ["(no rows yet)"]) + "\n"


_TASKS = ("generate", "edit", "perceive", "compose", "answer")


def _place(row: dict) -> tuple:
    kinds = ("v5e", "v6e", "v5p", "tpu7x")
    kind = kinds.index(row["topology"].partition(":")[0])
    return kind, row["chips"], row["slices"], _TASKS.index(row["task"]), row["conditions"]


def _cells(row: dict, stages: str) -> list[str]:
    gib, flops, bound = row["hbm_gib"], row["flops"], row["bound"]
    slices = f" x {row['slices']}" if row["slices"] > 1 else ""
    estimate = row["estimate"] or {}
    conditions = f" ({row['conditions']})" if row["conditions"] > 1 else ""
    return [
        row["topology"] + slices,
        f"{row['task']}{conditions}",
        stages,
        f"{row['mesh']['data']} x {row['mesh']['fsdp']}",
        f"{row['per_chip_batch']}",
        row["remat"].replace("_", " + "),
        f"{gib['total']:.1f} of {gib['limit']:.2f}" + ("" if row["fits"] else " (does not fit)"),
        f"{flops['model'] / 1e12:.0f} + {flops['text_encoder'] / 1e12:.0f}",
        " / ".join(
            [
                _percent(bound["mfu"]),
                _percent(estimate.get("mfu")),
                _percent((bound["serial"] or {}).get("mfu")),
            ]
        ),
        str(estimate.get("by") or bound["by"] or ""),
    ]


# Headings of the estimate's parts.
_PARTS = {
    "matmul": "products",
    "attention": "attention kernels",
    "elementwise": "element-wise",
    "copies": "copies",
    "synchronous_collectives": "collectives that nothing hides",
    "other_kernels": "other kernels",
}


def parts_table(rows: list[dict]) -> str:
    """Seconds of a step by what takes them, of the rows with an estimate."""
    lines = [
        f"| topology, samples per device | {' | '.join(_PARTS.values())} | step | MFU |",
        "|---" * (len(_PARTS) + 3) + "|",
    ]
    found = [row for row in rows if row["estimate"]]
    for row in found:
        estimate = row["estimate"]
        seconds = [f"{estimate['parts'].get(part, 0.0):.2f}" for part in _PARTS]
        cells = [f"{row['topology']}, {row['per_chip_batch']}", *seconds]
        cells += [f"{estimate['step_seconds']:.2f}", f"{100 * estimate['mfu']:.1f} %"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines if found else ["(no rows yet)"]) + "\n"


def weak_table(rows: list[dict]) -> str:
    lines = [
        "| chips | topology | mesh data x fsdp | GiB | arguments | executed TFLOP | wire GB: "
        "gather / scatter / reduce over data | other |",
        "|---|---|---|---|---|---|---|---|",
    ]
    found = [row for row in rows if row["config"] == "weak"]
    for row in sorted(found, key=lambda row: (row["chips"], row["slices"])):
        kinds = {"all-gather": 0.0, "reduce-scatter": 0.0, "data": 0.0, "other": 0.0}
        for one in row["collectives_by_axis"]:
            kind = one["kind"]
            if kind == "all-reduce" and one["axes"] == "data":
                kind = "data"
            kinds[kind if kind in kinds else "other"] += one["bytes"] / 1e9
        slices = f" x {row['slices']}" if row["slices"] > 1 else ""
        lines.append(
            f"| {row['chips']} | {row['topology']}{slices} | {row['mesh']['data']} x "
            f"{row['mesh']['fsdp']} | {row['hbm_gib']['total']:.2f} | "
            f"{row['hbm_gib']['arguments']:.2f} | {row['flops']['hardware'] / 1e12:.1f} | "
            f"{kinds['all-gather']:.2f} / {kinds['reduce-scatter']:.2f} / {kinds['data']:.2f} | "
            f"{kinds['other']:.2f} |"
        )
    return "\n".join(lines if found else ["(no rows yet)"]) + "\n"


def remat_table(rows: list[dict]) -> str:
    lines = [
        "| remat | GiB of temporaries | GiB in all | TFLOP done again | of the model's |",
        "|---|---|---|---|---|",
    ]
    found = [row for row in rows if row["config"] == "remat"]
    for row in found:
        gib, flops = row["hbm_gib"], row["flops"]
        again = flops["recomputation"]
        lines.append(
            f"| {row['remat']} | {gib['temporaries']:.1f} | {gib['total']:.1f}"
            + ("" if row["fits"] else " (does not fit)")
            + f" | {again / 1e12:.0f} | {_percent(again / flops['model'])} |"
        )
    return "\n".join(lines if found else ["(no rows yet)"]) + "\n"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"
