"""A trace of our side by JAX's profiler, and where its time went by category."""

from __future__ import annotations

import collections
import gzip
import json
import re
import sys
from pathlib import Path
from typing import Any

import jax

STEPS = 3
# The first that matches a kernel's or an operation's name, in lower case.
CATEGORIES = {
    "attention": r"fmha|flash|cudnn.*(sdpa|attn)|attention|softmax",
    "matrix products": r"gemm|cutlass|cublas|nvjet|\bdot|ynn_fusion|matmul|convolution",
    "collectives": r"all-reduce|all-gather|reduce-scatter|nccl|all-to-all",
    "copies and layouts": r"memcpy|copy|transpose|dynamic-update-slice|dynamic-slice|slice|pad",
    "element-wise and reductions": r"fusion|reduce|broadcast|wrapped|input_|loop_|memset",
}
REST = "others"


def take(side: Any, folder: Path) -> dict[str, Any]:
    """Traces a few steps and prints the table.

    Returns:
      Milliseconds per step by category, summed over the device's streams or the host's threads,
      and the ten most expensive operations.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with jax.profiler.trace(str(folder)):
        side.run(STEPS)
    trace = max(folder.rglob("*.trace.json.gz"), key=lambda path: path.stat().st_mtime)
    with gzip.open(trace) as file:
        operations = durations(json.load(file)["traceEvents"])
    found = {
        "trace": str(trace),
        "milliseconds": {k: round(v / STEPS, 3) for k, v in by_category(operations).items()},
        "top": {k: round(v / STEPS, 3) for k, v in operations.most_common(10)},
    }
    total = sum(found["milliseconds"].values()) or 1.0
    for name, value in found["milliseconds"].items():
        print(f"  {name:28} {value:10.2f} ms  {100 * value / total:5.1f} %", file=sys.stderr)
    return found


def durations(events: list[dict[str, Any]]) -> collections.Counter[str]:
    """Milliseconds of every operation of a trace, by its name without the number.

    An accelerator's lanes are those named "Stream"; without any, an operation is an event of the
    host that names its HLO instruction.
    """
    lanes = {
        (event["pid"], event.get("tid")): event["args"]["name"]
        for event in events
        if event.get("ph") == "M" and event.get("name") == "thread_name"
    }
    timed = [event for event in events if event.get("ph") == "X"]
    of_streams = [e for e in timed if "Stream" in lanes.get((e["pid"], e["tid"]), "")]
    chosen = of_streams or [event for event in timed if "hlo_op" in event.get("args", {})]
    found: collections.Counter[str] = collections.Counter()
    for event in chosen:
        # A loop's event spans those of its body.
        if not event["name"].startswith("while"):
            found[re.sub(r"[._]?\d+$", "", event["name"])] += event["dur"] / 1e3
    return found


def by_category(operations: collections.Counter[str]) -> dict[str, float]:
    """Sums by `CATEGORIES`, largest first."""
    found: collections.Counter[str] = collections.Counter()
    for name, value in operations.items():
        matching = (k for k, pattern in CATEGORIES.items() if re.search(pattern, name.lower()))
        found[next(matching, REST)] += value
    return dict(found.most_common())
