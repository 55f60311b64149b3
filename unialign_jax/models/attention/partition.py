"""Kernels under a mesh: the compiler cannot split them, so each device calls them on its part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

BATCH_AXES = ("data", "fsdp")
CONTEXT_AXIS = "context"
HEAD_AXIS = "tensor"


def axes() -> tuple[dict[str, int], dict[str, int]]:
    """Sizes of the surrounding mesh's axes by name: (manual ones, the others).

    An axis is manual inside a `jax.shard_map` over it. Both are empty without a mesh.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return {}, {}
    manual = {name: size for name, size in mesh.shape.items() if name in mesh.manual_axes}
    return manual, {name: size for name, size in mesh.shape.items() if name not in manual}


def per_device(
    function: Callable[..., Any], arrays: Sequence[Any], *, over_context: bool = False
) -> Any:
    """function(*arrays) on every device's part of [B T H K] arrays, and its result put together.

    Batch lies over `data` and `fsdp`, heads over `tensor`, tokens over `context` when asked for;
    of the axes that a size does not divide by, every device computes the same. Axes that are
    manual already are left alone; with no others the function is simply called.

    Args:
      function: takes and returns [B T H K] arrays, in any tuple; all of one B and H.
      arrays: its arguments.
      over_context: whether tokens are split as well. Their numbers must divide.
    """
    _, free = axes()
    if not free:
        return function(*arrays)
    batch, _, heads, _ = arrays[0].shape
    spec = P(
        _dividing(batch, BATCH_AXES, free) or None,
        CONTEXT_AXIS if over_context else None,
        _dividing(heads, (HEAD_AXIS,), free) or None,
        None,
    )
    # All axes, those of size 1 as well: a Pallas kernel refuses to be lowered beside free axes.
    return jax.shard_map(
        function,
        in_specs=(spec,) * len(arrays),
        out_specs=spec,
        axis_names=set(free),
        check_vma=False,
    )(*arrays)


def _dividing(size: int, names: Sequence[str], free: dict[str, int]) -> tuple[str, ...]:
    """Those of the axes, first come first served, whose product divides the size."""
    chosen, product = [], 1
    for name in names:
        if name in free and size % (product * free[name]) == 0:
            chosen.append(name)
            product *= free[name]
    return tuple(chosen)
