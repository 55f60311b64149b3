"""Hardware that nothing here can compile for: time and memory from the traced program alone.

A GPU's compiler needs a GPU. FLOPs are exact; the rest is estimated. Memory traffic: products and
attention kernels read and write their operands, element-wise work between two products reads and
writes the same arrays once more, reductions read their input, and the optimiser reads and writes
seven float32 numbers per parameter. Memory: the state, gradients, and what the forward leaves for
the backward.
"""

from __future__ import annotations

from typing import Any

from unialign_jax.planning import bounds, flops
from unialign_jax.planning.batch import argument_bytes, trainable_part
from unialign_jax.planning.bounds import StepFlops
from unialign_jax.planning.hardware import Chip
from unialign_jax.planning.memory import Memory
from unialign_jax.training.setup import Setup

# Shares of the peaks that large products, attention kernels and streaming reach on a GPU. Assumed:
# between 60 and 75 %, 45 and 60 %, and 75 and 90 % are usual in bfloat16.
PRODUCTS, ATTENTION, STREAMING = 0.65, 0.5, 0.8
_OPTIMIZER_ARRAYS = 7


def guess(
    setup: Setup,
    counted: flops.Count,
    step: StepFlops,
    arguments: float,
    jaxpr: Any,
    chip: Chip,
) -> tuple[Memory, dict[str, Any], dict[str, Any]]:
    """(memory, roofline, estimate) as `bounds` gives them; see the module for how."""
    n = setup.mesh.size
    gradients = argument_bytes(trainable_part(setup))
    traffic = 2 * counted.traffic / n + _OPTIMIZER_ARRAYS * gradients
    links = 0.0
    shards = setup.mesh.shape["fsdp"]
    if n > 1:
        # bfloat16 weights gathered twice, float32 gradients scattered and summed.
        links = 2 * gradients * shards * (shards - 1) / shards + 2 * gradients * (n - 1) / n
    roof = bounds.roofline(step, traffic, links, 0.0, chip)
    parts = {
        "matmul": (step.hardware - step.attention) / (chip.flops * PRODUCTS),
        "attention": step.attention / (chip.flops * ATTENTION),
        "elementwise": traffic / 2 / (chip.hbm_bytes * STREAMING),
        "synchronous_collectives": links / chip.ici_ring,
    }
    seconds = sum(parts.values())
    order = sorted(parts, key=lambda name: -parts[name])
    kept = residual_bytes(jaxpr) / n
    temporaries = gradients + kept
    total = arguments + temporaries
    memory = Memory(total <= chip.limit, chip.limit, arguments, temporaries, total, [])
    return (
        memory,
        roof,
        {
            "step_seconds": seconds,
            "mfu": bounds.mfu(step, seconds, chip),
            "by": order[0],
            "parts": {name: parts[name] for name in order if parts[name]},
            "attention_efficiency": ATTENTION,
        },
    )


def residual_bytes(jaxpr: Any) -> float:
    """Bytes on all devices that loops stack for later: what a scan leaves for its backward."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    best = total = 0.0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "scan":
            stacked = eqn.outvars[eqn.params["num_carry"] :]
            total += sum(
                v.aval.size * v.aval.dtype.itemsize for v in stacked if hasattr(v.aval, "size")
            )
        for inner in flops.inner_jaxprs(eqn.params):
            best = max(best, flops.instances(eqn) * residual_bytes(inner))
    return total + best
