"""Seconds to compile the training step of a deep network and of a shallow one.

    python benchmarks/compile_time.py --out benchmarks/results/compile_time.json

Layers are scanned, so that depth should cost next to nothing. Tracing counts; nothing is run, and
no parameter is allocated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.peer import compare


def main() -> None:
    """Compiles every depth in turns and writes the figures."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=384, help="of every network")
    parser.add_argument("--layers", type=int, nargs=2, default=(6, 24), help="the two depths")
    parser.add_argument("--rounds", type=int, default=3, help="compilations of each")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--latents", type=int, default=32)
    parser.add_argument("--text", type=int, default=64)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--remat", default="none")
    parser.add_argument("--platform", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    compare.choose_platform(args.platform)

    import jax

    from benchmarks.peer.case import Case

    seconds: dict[int, list[float]] = {layers: [] for layers in args.layers}
    for number in range(args.rounds):
        for layers in args.layers:
            # Else a second compilation would find the first one.
            jax.clear_caches()
            case = Case(
                *(layers, args.width, args.batch, args.latents, args.text),
                *(args.dtype, args.remat),
            )
            seconds[layers].append(compile_once(case))
        line = {layers: round(values[-1], 2) for layers, values in seconds.items()}
        print(f"  round {number + 1}: {line} s", file=sys.stderr, flush=True)
    shallow, deep = (seconds[layers] for layers in args.layers)
    each = [b / a for a, b in zip(shallow, deep, strict=True)]
    report = {
        **compare.circumstances(torch=False),
        "width": args.width,
        "seconds": {layers: [round(v, 2) for v in values] for layers, values in seconds.items()},
        "ratio": {
            "median": round(statistics.median(each), 3),
            "min": round(min(each), 3),
            "max": round(max(each), 3),
        },
    }
    print(json.dumps(report, indent=2))
    if args.out:
        compare.write(args.out, report)


def compile_once(case: Any) -> float:
    """Seconds from tracing to the compiled step."""
    from benchmarks.peer import jax_side

    state, batch = jax_side.abstract_arguments(case)
    begin = time.perf_counter()
    jax_side.training_step(case).lower(state, batch).compile()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
