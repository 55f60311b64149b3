"""Floating-point operations of a traced program, and what a chip can do.

Counted are matrix products and convolutions, a multiplication and an addition each, in the bodies
of loops as often as they run: what torch.utils.flop_counter.FlopCounterMode counts too.
"""

from __future__ import annotations

import math
from typing import Any

# Dense bfloat16, per second, by a part of the device's name: NVIDIA's data sheets of H100 and H200
# SXM (1,979 TFLOP/s are with sparsity).
PEAKS = {"H200": 989e12, "H100": 989e12}


def count(jaxpr: Any) -> int:
    """FLOPs of a (closed) jaxpr; dead code is for the caller to remove."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            inner = math.prod(left[i] for i in contracted)
            total += 2 * inner * math.prod(equation.outvars[0].aval.shape)
        elif name == "scan":
            total += params["length"] * count(params["jaxpr"])
        elif name in ("while", "cond", "conv_general_dilated"):
            raise NotImplementedError(f"the programs of the benchmarks have no {name}")
        else:
            total += sum(count(inner) for inner in _inner(params))
    return total


def _inner(params: dict[str, Any]) -> list[Any]:
    found = [value for value in params.values() if hasattr(getattr(value, "jaxpr", value), "eqns")]
    return found[:1]


def peak(device_kind: str) -> float | None:
    """FLOP/s of a device of which we know them."""
    return next((value for name, value in PEAKS.items() if name in device_kind), None)
