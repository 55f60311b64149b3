"""The command line that `train_step.py` and `sample_step.py` share."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import jax

from benchmarks.peer import chips, rounds
from benchmarks.peer.case import Case, parse_size
from benchmarks.peer.worker import Worker

# Freed memory is kept, in huge pages: else a step spends up to a third of its time on faults of
# fresh memory, most where three processes share it. All sides get the same.
TUNABLES = ":".join(
    f"glibc.malloc.{setting}"
    for setting in ("hugetlb=1", "mmap_max=0", f"trim_threshold={2**35}", "arena_max=1")
)
SIDES = {
    "all": ("jax", "eager", "compiled"),
    "eager-and-jax": ("jax", "eager"),
    "jax": ("jax",),
    "eager": ("eager",),
    "compiled": ("compiled",),
}
FULL = {
    "size": ["24x1536"],
    "dtype": "bfloat16",
    "latents": 64,
    "text": 256,
    "platform": "cuda",
    "steps": 5,
}


def parser(what: str, description: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = made.add_argument
    add("--size", action="append", help="layers x width, repeatable (6x384 and 12x768 if none)")
    add("--batch", type=int, default=4, help="samples in a step")
    add("--latents", type=int, default=32, help="side of the latents")
    add("--text", type=int, default=64, help="tokens of a text")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the computation")
    add("--remat", default="none", help="what our side recomputes: none, full, dots, ...")
    add(
        "--unroll",
        choices=("auto", "yes", "no"),
        default="auto",
        help="whether our side compiles every block by itself: auto does on a CPU",
    )
    add("--rounds", type=int, default=7, help="turns of every side")
    add("--steps", type=int, default=1, help="steps in a turn")
    add("--platform", choices=("cpu", "cuda"), default="cpu", help="where both run")
    add("--side", choices=SIDES, default="all", help="which run")
    add("--no-torch", action="store_true", help="ours alone: no ratio, no check against PyTorch")
    add("--full", action="store_true", help=f"the published model on a GPU: {FULL}")
    add("--profile", type=Path, help="folder for a trace of our side, with a table by category")
    add("--out", type=Path, help=f"JSON file to write, as benchmarks/results/{what}_cpu.json")
    return made


def arguments(made: argparse.ArgumentParser) -> argparse.Namespace:
    """Parses the command line and prepares the process."""
    args = made.parse_args()
    if args.full:
        for name, value in FULL.items():
            if getattr(args, name) == made.get_default(name):
                setattr(args, name, value)
    args.size = args.size or ["6x384", "12x768"]
    choose_platform(args.platform)
    return args


def choose_platform(name: str) -> None:
    """Sets up this process and those it starts, before JAX has a device; may begin it again."""
    # Read by glibc when a process begins.
    if sys.platform == "linux" and TUNABLES not in os.environ.get("GLIBC_TUNABLES", ""):
        os.environ["GLIBC_TUNABLES"] = TUNABLES
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    os.environ["JAX_PLATFORMS"] = name
    jax.config.update("jax_platforms", name)
    # Both share one GPU: neither takes all of its memory at the start.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def measure(args: argparse.Namespace, kind: str) -> None:
    """Compares at every size; figures are written to `args.out` after each.

    Args:
      args: of `arguments`.
      kind: "Training" or "Sampling".
    """
    found = []
    for size in args.size:
        layers, width = parse_size(size)
        unroll = args.unroll == "yes" or (args.unroll == "auto" and args.platform == "cpu")
        case = Case(
            *(layers, width, args.batch, args.latents, args.text, args.dtype, args.remat), unroll
        )
        print(f"{case}, {args.dtype}, batch {args.batch}", file=sys.stderr, flush=True)
        found.append(_measure(case, args, kind))
        print(json.dumps(found[-1], indent=2), flush=True)
        report(args, found)


def _measure(case: Case, args: argparse.Namespace, kind: str) -> dict[str, Any]:
    with contextlib.ExitStack() as stack:
        sides = []
        for variant in _variants(args):
            sides.append(stack.enter_context(Worker(variant, kind, case, args.platform)))
            built = sides[-1]
            print(f"  {built.name}: compiled in {built.compile_seconds:.1f} s", file=sys.stderr)
        return _compared(sides, case, args)


def _variants(args: argparse.Namespace) -> list[str]:
    variants = list(SIDES[args.side])
    if args.no_torch:
        print("  PyTorch left out (--no-torch): nothing to compare with", file=sys.stderr)
        variants = ["jax"]
    return variants


def _compared(sides: list[Worker], case: Case, args: argparse.Namespace) -> dict[str, Any]:
    values = rounds.check(sides, args.dtype)
    times = rounds.alternate(sides, args.rounds, args.steps)
    peak = chips.peak(jax.devices()[0].device_kind) if args.platform == "cuda" else None
    result: dict[str, Any] = {"size": str(case), "checked": values, "sides": {}}
    for side in sides:
        seconds = rounds.spread(times[side.name]["seconds"])
        row: dict[str, Any] = {
            "seconds": seconds,
            "cpu_seconds": rounds.spread(times[side.name]["cpu_seconds"]),
            "compile_seconds": round(side.compile_seconds, 2),
        }
        memory = side.memory()
        if memory:
            row["memory_gib"] = memory
        if side.flops:
            row["flops"] = side.flops
            if peak:
                row["mfu"] = round(side.flops / seconds["median"] / peak, 4)
        result["sides"][side.name] = row
    if len(sides) > 1 and sides[0].name == rounds.OURS:
        result["faster_than"] = rounds.ratios(times)
        result["less_processor_time_than"] = rounds.ratios(times, "cpu_seconds")
    if args.profile and sides[0].name == rounds.OURS:
        result["profile"] = sides[0].profile(args.profile / str(case))
    return result


def report(args: argparse.Namespace, figures: list[dict[str, Any]]) -> None:
    """Writes the figures with what is needed to understand and repeat them."""
    if args.out:
        write(args.out, {**circumstances(not args.no_torch), "figures": figures})


def circumstances(torch: bool) -> dict[str, Any]:
    """Date, command, device and versions."""
    versions = {"python": platform.python_version(), "jax": jax.__version__}
    if torch:
        versions["torch"] = importlib.metadata.version("torch")
    device = jax.devices()[0].device_kind
    return {
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", *sys.argv]),
        "device": f"{device}, {os.cpu_count()} cores, {processor()}",
        "versions": versions,
    }


def write(path: Path, report: dict[str, Any]) -> None:
    """Writes a report as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")


def processor() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo")
    names = lines.read_text().splitlines() if lines.exists() else []
    found = next((line.split(":")[1].strip() for line in names if "model name" in line), "")
    return found or platform.processor() or platform.machine()
