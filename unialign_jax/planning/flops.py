"""FLOPs of a traced program: its matrix products and convolutions, read from the jaxpr.

Two FLOPs per multiply-add; element-wise work is not counted, as is usual for MFU. Lengths of scans,
grids of kernels and sizes of manual meshes are multiplied out, and what nothing reads is left out,
as the compiler leaves it out (the forward kernel in a rematerialised layer whose residuals were
saved, for one).

Attention kernels are counted by formula from their operands: what they compute (`total`) and what
of it an implementation without recomputation would not (`repeated`): a fused backward forms the
logits again.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

# Products of [S, K] x [K, S'] size in a kernel: all, and those that repeat the forward's or one of
# the other backward kernel's. Forward: q k^T and p v. Backward: dv, dp, dq and dk are needed.
_SPLASH = {"_fwd": (2, 0), "_dq": (3, 2), "_dkv": (4, 1)}
_SPLASH_FUSED_BACKWARD = (5, 1)
# The scope that `training/step.py` gives the encoder.
TEXT_ENCODER = "text_encoder"
_CUDNN = {"fwd": (2, 0), "bwd": (5, 1)}


@dataclasses.dataclass(frozen=True)
class Count:
    """FLOPs of a program on all devices together.

    Attributes:
        total: everything that runs.
        repeated: the part that attention kernels form again in their backward.
        attention: the part in attention kernels (Pallas and cuDNN), `repeated` included.
        attention_depth: depth of their contractions (the head dimension), 0 without kernels.
        text_encoder: the part inside the scope `text_encoder` (see `training/step.py`).
        traffic: bytes in and out of products and attention kernels, and into reductions.
        unknown_loops: while loops whose number of rounds the jaxpr does not say, counted once.
    """

    total: float = 0.0
    repeated: float = 0.0
    attention: float = 0.0
    attention_depth: int = 0
    text_encoder: float = 0.0
    traffic: float = 0.0
    unknown_loops: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(
            self.total + other.total,
            self.repeated + other.repeated,
            self.attention + other.attention,
            max(self.attention_depth, other.attention_depth),
            self.text_encoder + other.text_encoder,
            self.traffic + other.traffic,
            self.unknown_loops + other.unknown_loops,
        )

    def times(self, n: float) -> Count:
        """The same program `n` times."""
        names = ("total", "repeated", "attention", "text_encoder", "traffic")
        return dataclasses.replace(self, **{name: n * getattr(self, name) for name in names})


def count(jaxpr: Any) -> Count:
    """FLOPs of a (closed) jaxpr with all its outputs wanted."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return _walk(jaxpr, [True] * len(jaxpr.outvars))[0]


def _walk(jaxpr: Any, wanted: list[bool]) -> tuple[Count, list[bool]]:
    """FLOPs of what the wanted outputs need, and which inputs they need."""
    live = {v for v, want in zip(jaxpr.outvars, wanted, strict=True) if want and _is_var(v)}
    total = Count()
    for eqn in reversed(jaxpr.eqns):
        outs = [v in live for v in eqn.outvars]
        if not any(outs) and not eqn.effects:
            continue
        cost, needs = _equation(eqn, outs)
        if TEXT_ENCODER in str(eqn.source_info.name_stack):
            cost = dataclasses.replace(cost, text_encoder=cost.total)
        total = total + cost
        live.update(v for v, need in zip(eqn.invars, needs, strict=True) if need and _is_var(v))
    return total, [v in live for v in jaxpr.invars]


def _bytes(values: Any) -> float:
    avals = [v.aval for v in values if hasattr(v.aval, "shape")]
    return float(sum(math.prod(aval.shape) * aval.dtype.itemsize for aval in avals))


def _is_var(v: Any) -> bool:
    return not hasattr(v, "val")


def _equation(eqn: Any, outs: list[bool]) -> tuple[Count, list[bool]]:
    name, params = eqn.primitive.name, eqn.params
    everything = [True] * len(eqn.invars)
    if name == "dot_general":
        return Count(_dot(eqn), traffic=_bytes(eqn.invars) + _bytes(eqn.outvars)), everything
    if name == "conv_general_dilated":
        moved = _bytes(eqn.invars) + _bytes(eqn.outvars)
        return Count(_convolution(eqn), traffic=moved), everything
    if name.startswith("reduce_"):
        return Count(traffic=_bytes(eqn.invars)), everything
    if name == "pallas_call":
        moved = _bytes(eqn.invars) + _bytes(eqn.outvars)
        return dataclasses.replace(_kernel(eqn), traffic=moved), everything
    if name.startswith("dot_product_attention_"):
        products = _CUDNN["bwd" if "bwd" in name else "fwd"]
        cost = _attention(products, [v.aval.shape for v in eqn.invars[:2]], heads_last=True)
        moved = _bytes(eqn.invars[:4]) + _bytes(eqn.outvars)
        return dataclasses.replace(cost, traffic=moved), everything
    if name == "scan":
        return _scan(eqn, outs)
    if name == "while":
        body = params["body_jaxpr"].jaxpr
        cost = _walk(body, [True] * len(body.outvars))[0]
        return dataclasses.replace(cost, unknown_loops=cost.unknown_loops + 1), everything
    if name == "cond":
        costs = [_walk(branch.jaxpr, outs)[0] for branch in params["branches"]]
        return max(costs, key=lambda cost: cost.total), everything
    inner = inner_jaxprs(params)
    if not inner:
        return Count(), everything
    cost = Count()
    needs = everything
    for jaxpr in inner:
        same = len(jaxpr.outvars) == len(outs) and len(jaxpr.invars) == len(eqn.invars)
        each, found = _walk(jaxpr, outs if same else [True] * len(jaxpr.outvars))
        cost, needs = cost + each, found if same and len(inner) == 1 else everything
    return cost.times(instances(eqn)), needs


def instances(eqn: Any) -> int:
    """On how many devices the inside of a `shard_map` runs, each on its own part; 1 for others."""
    if eqn.primitive.name != "shard_map":
        return 1
    sizes = dict(eqn.params["mesh"].shape)
    manual = eqn.params.get("newly_manual_axes", eqn.params.get("manual_axes", sizes))
    return math.prod(sizes[axis] for axis in manual)


def inner_jaxprs(params: dict[str, Any]) -> list[Any]:
    """The jaxprs among the parameters of an equation; rules for derivatives are functions."""
    found = []
    for value in params.values():
        for item in value if isinstance(value, (list, tuple)) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                found.append(item)
    return found


def _scan(eqn: Any, outs: list[bool]) -> tuple[Count, list[bool]]:
    """A scan: what a later round reads of the carry is wanted of the earlier one."""
    params = eqn.params
    body = params["jaxpr"].jaxpr
    consts, carries = params["num_consts"], params["num_carry"]
    wanted = list(outs)
    while True:
        cost, needs = _walk(body, wanted)
        carried = needs[consts : consts + carries]
        merged = [a or b for a, b in zip(wanted[:carries], carried, strict=True)]
        if merged == wanted[:carries]:
            return cost.times(params["length"]), needs
        wanted[:carries] = merged


def _dot(eqn: Any) -> float:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left = eqn.invars[0].aval.shape
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)


def _convolution(eqn: Any) -> float:
    numbers = eqn.params["dimension_numbers"]
    kernel = eqn.invars[1].aval.shape
    outputs = kernel[numbers.rhs_spec[0]]
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) / outputs


def _kernel(eqn: Any) -> Count:
    """A Pallas kernel; splash attention by formula, any other by its body and grid."""
    params = eqn.params
    name = str(params.get("name") or params.get("name_and_src_info") or "")
    floats = [v.aval.shape for v in eqn.invars if np.issubdtype(_numpy_kind(v.aval), np.floating)]
    if "splash" in name:
        part = next((part for part in _SPLASH if part in name), None)
        if part is not None:
            products = _SPLASH[part]
            # Fused: dq comes out of the kernel for dk and dv too, one share per block of keys.
            rank = len(floats[0])
            # Tokens may lie last in q, not in a gradient.
            last = sorted(floats[0][-2:])
            full = [v for v in eqn.outvars if sorted(v.aval.shape[-2:]) == last]
            if part == "_dkv" and any(len(v.aval.shape) > rank for v in full):
                products = _SPLASH_FUSED_BACKWARD
            return _attention(products, floats[:2], heads_last=False)
    rounds = math.prod(params["grid_mapping"].grid)
    body = params["jaxpr"]
    return _walk(body, [True] * len(body.outvars))[0].times(rounds)


def _numpy_kind(aval: Any) -> Any:
    """NumPy's float32 for every float of JAX: bfloat16 is none of NumPy's own."""
    import jax.numpy as jnp

    return np.float32 if jnp.issubdtype(aval.dtype, jnp.floating) else np.int32


def _attention(products: tuple[int, int], shapes: list[Any], *, heads_last: bool) -> Count:
    """Products between queries and keys.

    [B, S, H, K] heads last; else [..., S, K], or [..., K, S] in splash's layout with tokens minor,
    where K is the smaller: kernels take heads of at most 128 channels and tokens by the 128.
    """
    q, k = shapes
    length, depth = (k[-3], q[-1]) if heads_last else (max(k[-2:]), min(q[-2:]))
    each = 2.0 * math.prod(q) * length
    total, repeated = products[0] * each, products[1] * each
    return Count(total, repeated, total, int(depth))
