"""The table of docs/scale.md: what every stage needs on every topology, by the TPU compiler.

    python benchmarks/scale_table.py            # everything that is not there yet, then the page
    python benchmarks/scale_table.py --quick    # memory and collectives only, much faster
    python benchmarks/scale_table.py --only v5e:16x16 --stages stage1_pretrain
    python benchmarks/scale_table.py --weak     # the weak-scaling rows
    python benchmarks/scale_table.py --remat    # the rows of remat policies
    python benchmarks/scale_table.py --page     # only writes the page from scale.json

Rows go to benchmarks/results/scale.json as they are made, so a run that was stopped goes on where
it was. A row is made again when --again is given; compilations themselves are kept by `plan`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from benchmarks import scale_page
from unialign_jax import config as configs
from unialign_jax.errors import UserError
from unialign_jax.models.mmdit_config import REMAT_POLICIES
from unialign_jax.planning import topology as topologies
from unialign_jax.planning.batch import Case, cases, with_values
from unialign_jax.planning.program import Plan, plan
from unialign_jax.planning.report import to_json

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "scale.json"
STAGES = ("stage1_pretrain", "stage2_unify", "stage3_personalize", "stage4_instruct")


@dataclasses.dataclass(frozen=True)
class Target:
    """A topology and the settings tried on it; the first that fits is taken.

    Attributes:
        name, slices: of the topology.
        remat: policy; after it, `full` is tried.
        batches: condition images -> samples per device to try, largest first.
    """

    name: str
    slices: int
    remat: str
    batches: dict[int, tuple[int, ...]]


_V5E = {0: (32, 24, 16, 8, 4), 1: (16, 12, 8, 4, 2), 2: (12, 8, 4, 2), 3: (8, 6, 4, 2, 1)}
_V6E = {0: (32, 24, 16), 1: (32, 24, 16, 8), 2: (24, 16, 8, 4), 3: (16, 12, 8, 4)}
_V5P = {0: (32, 24, 16, 8), 1: (24, 16, 12, 8), 2: (16, 12, 8, 4), 3: (12, 8, 6, 4)}
TARGETS = (
    Target("v5e:16x16", 1, "full", _V5E),
    Target("v6e:16x16", 1, "attention", _V6E),
    Target("v5p:4x4x4", 1, "dots_attention", _V5P),
    Target("v5p:8x8x8", 1, "dots_attention", _V5P),
    Target("v5p:8x8x8", 2, "dots_attention", _V5P),
    # 128 devices on 64 chips.
    Target("tpu7x:4x4x4", 1, "dots_attention", _V5P),
)
# Weak scaling: fsdp fixed, data grows, the same samples per chip.
WEAK = (
    *(("v5p:2x2x4", 1), ("v5p:4x4x4", 1), ("v5p:4x8x8", 1), ("v5p:8x8x8", 1)),
    *(("v5p:8x8x16", 1), ("v5p:8x8x8", 2)),
)
WEAK_FSDP, WEAK_BATCH = 8, 8
# Every policy at the same setting.
REMAT_TOPOLOGY, REMAT_BATCH = "v5p:4x4x4", 16


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="memory and collectives only")
    parser.add_argument("--stages", default=",".join(STAGES), help="configs, with commas")
    parser.add_argument("--only", default="", help="one topology")
    parser.add_argument("--tasks", default="", help="tasks in place of each stage's mixture")
    parser.add_argument("--weak", action="store_true", help="the weak-scaling rows")
    parser.add_argument("--remat", action="store_true", help="the rows of remat policies")
    parser.add_argument("--page", action="store_true", help="only write the page")
    parser.add_argument("--again", action="store_true", help="make rows that are there again")
    args = parser.parse_args()
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    if args.weak:
        rows = weak_rows(rows, args)
    elif args.remat:
        rows = remat_rows(rows, args)
    elif not args.page:
        for stage in args.stages.split(","):
            rows = stage_rows(rows, stage, args)
    scale_page.write(rows)
    return 0


def stage_rows(rows: list[dict], stage: str, args: argparse.Namespace) -> list[dict]:
    config = configs.to_plain(configs.load_config(stage))
    for target in TARGETS:
        if args.only not in ("", target.name):
            continue
        topology = topologies.parse(target.name, target.slices)
        devices = topologies.devices(topology)
        for case in cases(config, args.tasks):
            key = (
                f"{stage} {target.name} {target.slices} {case} {'quick' if args.quick else 'full'}"
            )
            if not args.again and any(row["key"] == key for row in rows):
                continue
            found = first_that_fits(config, target, topology, case, devices, args.quick)
            rows = keep(rows, key, stage, found, config)
    return rows


def first_that_fits(
    config: dict, target: Target, topology: Any, case: Case, devices: list, quick: bool
) -> Plan:
    """The plan of a row: quick compiles until a setting fits, then that one with full effort."""
    tried = None
    for remat in dict.fromkeys((target.remat, "full")):
        for batch in target.batches[case.conditions]:
            values = settings(0, remat, batch, topology.devices)
            changed = with_values(config, values)
            begin = time.monotonic()
            tried = plan(changed, topology, case, devices, quick=True)
            gib = tried.memory.gib()
            say(
                f"{case} on {target.name} x {target.slices}, {remat}, {batch} per device: "
                f"{gib['total']:.1f} of {gib['limit']} GiB in {time.monotonic() - begin:.0f} s"
            )
            if tried.memory.fits:
                return tried if quick else plan(changed, topology, case, devices)
    assert tried is not None
    return tried


def settings(fsdp: int, remat: str, batch: int, devices: int) -> dict[str, Any]:
    return {
        "mesh.fsdp": fsdp,
        "mesh.data": -1,
        "mesh.context": 1,
        "mesh.tensor": 1,
        "model.remat": remat,
        "train.global_batch": batch * devices,
        "train.micro_batches": 1,
    }


def weak_rows(rows: list[dict], args: argparse.Namespace) -> list[dict]:
    config = configs.to_plain(configs.load_config(args.stages.split(",")[0]))
    for name, slices in WEAK:
        key = f"weak {name} {slices}"
        if not args.again and any(row["key"] == key for row in rows):
            continue
        topology = topologies.parse(name, slices)
        values = settings(WEAK_FSDP, "full", WEAK_BATCH, topology.devices)
        devices = topologies.devices(topology)
        found = plan(with_values(config, values), topology, Case("generate"), devices, quick=True)
        rows = keep(rows, key, "weak", found, config)
    return rows


def remat_rows(rows: list[dict], args: argparse.Namespace) -> list[dict]:
    config = configs.to_plain(configs.load_config(args.stages.split(",")[0]))
    topology = topologies.parse(REMAT_TOPOLOGY)
    devices = topologies.devices(topology)
    for policy in REMAT_POLICIES:
        key = f"remat {REMAT_TOPOLOGY} {policy}"
        if not args.again and any(row["key"] == key for row in rows):
            continue
        values = settings(0, policy, REMAT_BATCH, topology.devices)
        found = plan(with_values(config, values), topology, Case("generate"), devices, quick=True)
        rows = keep(rows, key, "remat", found, config)
    return rows


def keep(rows: list[dict], key: str, stage: str, found: Plan, config: dict) -> list[dict]:
    """Replaces a row and writes all of them."""
    details = to_json(found, steps=config["train"]["steps"])
    for long in ("synchronous", "heaviest", "collectives_by_axis"):
        details[long] = details[long][:6]
    rows = [row for row in rows if row["key"] != key]
    rows.append({"key": key, "config": stage, **details})
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    partial = RESULTS.with_suffix(".partial")
    partial.write_text(json.dumps(rows, indent=1) + "\n")
    os.replace(partial, RESULTS)
    say(f"kept: {key}")
    return rows


def say(text: str) -> None:
    print(f"scale table: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"scale table: {error}")
