"""A batch whose rows lie over mesh axes, seen from one device inside `jax.shard_map`.

Losses are means over the whole batch. Each device computes its own rows' share of a mean, so that
the shares of all devices add up to the loss, and the gradients of the shares to its gradient.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class Rows:
    """Which rows of the global batch a device sees.

    Attributes:
      axes: the mesh axes over which rows lie, the first outermost; empty where a device sees all.
    """

    axes: tuple[str, ...] = ()

    @property
    def parts(self) -> int:
        """Devices over which the rows lie."""
        return math.prod(jax.lax.axis_size(axis) for axis in self.axes)

    def indices(self, count: int) -> Int[Array, " B"]:
        """Positions in the global batch of this device's `count` rows."""
        local = jnp.arange(count)
        return local + jax.lax.axis_index(self.axes) * count if self.axes else local

    def sum(self, x: Any) -> Any:
        """The sum over devices; for what no gradient flows through."""
        return jax.lax.psum(x, self.axes) if self.axes else x

    def gather(self, x: Float[Array, "B ..."]) -> Float[Array, "G ..."]:
        """All rows of the global batch; gradients return to the rows' own devices, summed."""
        return jax.lax.all_gather(x, self.axes, tiled=True) if self.axes else x

    def mean(self, x: Float[Array, ...]) -> Float[Array, ""]:
        """This device's share of the mean over all rows."""
        return jnp.mean(x) / self.parts if self.axes else jnp.mean(x)

    def weighted_mean(
        self, x: Float[Array, ...], weight: Float[Array, ...] | None
    ) -> Float[Array, ""]:
        """This device's share of sum(x w) / sum(w) over all rows; the mean without weights."""
        if weight is None:
            return self.mean(x)
        return jnp.sum(x * weight) / jnp.maximum(self.sum(jnp.sum(weight)), 1e-9)


ALL_ROWS = Rows()
