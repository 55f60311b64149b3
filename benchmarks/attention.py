"""Attention backends against each other, and against PyTorch's fused attention, in turns.

    python benchmarks/attention.py --out benchmarks/results/attention_cpu.json
    python benchmarks/attention.py --platform cuda --dtype bfloat16 --shape 4x1280x24x64

Forward, and forward with backward, of one call. All agree before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peer import compare, rounds

# Samples x tokens x heads x channels: a training and a guided sampling step of 6 x 384, of
# 12 x 768, and 512 pixels.
SHAPES = ("4x320x6x64", "8x320x6x64", "4x320x12x64", "4x1280x6x64")
DEFAULTS = {"cpu": ("xla", "xla_by_sample"), "cuda": ("xla", "cudnn")}
TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2}


def main() -> None:
    """Times every shape and writes the figures."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", action="append", help=f"B x T x H x K, repeatable: {SHAPES}")
    parser.add_argument("--backends", help="with commas; by platform if none")
    parser.add_argument("--dtype", choices=tuple(TOLERANCES), default="float32")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--platform", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--no-torch", action="store_true", help="ours alone")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    compare.choose_platform(args.platform)
    names = args.backends.split(",") if args.backends else DEFAULTS[args.platform]
    report = {**compare.circumstances(not args.no_torch), "figures": []}
    for shape in args.shape or SHAPES:
        report["figures"].append(measure([int(n) for n in shape.split("x")], names, args))
        print(json.dumps(report["figures"][-1]), flush=True)
        if args.out:
            compare.write(args.out, report)


def measure(shape: list[int], names: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of every backend at a shape, and times the first one's over each."""
    draws = np.random.default_rng(0)
    arrays = [draws.standard_normal(shape).astype(np.float32) for _ in range(4)]
    sides = {name: ours(name, arrays, args.dtype) for name in names}
    if not args.no_torch:
        sides["torch"] = torch_s(arrays, args.dtype, args.platform)
    wanted = sides[names[0]][2]()
    for name, (forward, _, values) in sides.items():
        forward()
        error = max(np.abs(a - b).max() for a, b in zip(values(), wanted, strict=True))
        if not error < TOLERANCES[args.dtype]:
            raise SystemExit(f"{name} differs from {names[0]} by {error:.2g}. Not timed.")
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in sides}
    for _ in range(args.rounds):
        for name, calls in sides.items():
            for call, kept in zip(calls[:2], times[name], strict=True):
                begin = time.perf_counter()
                call()
                kept.append(time.perf_counter() - begin)
    found: dict[str, Any] = {"shape": shape, "dtype": args.dtype}
    for index, part in enumerate(("forward", "forward_and_backward")):
        first = np.asarray(times[names[0]][index])
        found[part] = {
            name: {
                "milliseconds": rounds.spread([1e3 * value for value in both[index]]),
                "of_the_first": rounds.spread(list(np.asarray(both[index]) / first)),
            }
            for name, both in times.items()
        }
    print(f"  {shape}: done", file=sys.stderr, flush=True)
    return found


# Forward; forward and backward; and the gradients as NumPy arrays, which is not timed. They return
# when the result is there.
Calls = tuple[Callable[[], Any], Callable[[], Any], Callable[[], Any]]


def ours(name: str, arrays: list[Any], dtype: str) -> Calls:
    """The calls of one of our backends."""
    import jax
    import jax.numpy as jnp

    from unialign_jax.models.attention import attention

    q, k, v, d_out = (jnp.asarray(x, dtype) for x in arrays)

    def attend(q: Any, k: Any, v: Any) -> Any:
        return attention(q, k, v, backend=name)

    forward = jax.jit(attend)
    both = jax.jit(lambda q, k, v, d: jax.vjp(attend, q, k, v)[1](d))
    return (
        lambda: forward(q, k, v).block_until_ready(),
        lambda: jax.block_until_ready(both(q, k, v, d_out)),
        lambda: [np.asarray(x, np.float32) for x in both(q, k, v, d_out)],
    )


def torch_s(arrays: list[Any], dtype: str, platform: str) -> Calls:
    """The calls of PyTorch, in its own layout, heads before tokens."""
    import torch

    q, k, v, d_out = (
        torch.from_numpy(x).to(platform, getattr(torch, dtype)).transpose(1, 2) for x in arrays
    )
    leaves = [x.requires_grad_() for x in (q, k, v)]
    attend = torch.nn.functional.scaled_dot_product_attention

    def finished(found: Any) -> Any:
        if platform == "cuda":
            torch.cuda.synchronize()
        return found

    def forward() -> Any:
        with torch.no_grad():
            return finished(attend(q, k, v))

    def both() -> Any:
        return finished(torch.autograd.grad(attend(q, k, v), leaves, d_out))

    def values() -> list[Any]:
        return [x.transpose(1, 2).float().cpu().numpy() for x in both()]

    return forward, both, values


if __name__ == "__main__":
    main()
