"""How a network reads weights that are stored in parts: whole where they are, or gathered.

Fully sharded data parallelism (FSDP, arXiv 2304.11277; ZeRO stage 3): every device keeps a part of
each weight, gathers the whole just before a layer needs it, and gets the sum of all devices'
gradients for its own part alone. The gather is written by hand, inside `jax.shard_map`: left to
itself, the compiler splits the products instead and sums activations.
"""

from __future__ import annotations

import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec as P

AXIS = "fsdp"


class Storage(Protocol):
    """What a network needs to know of how its weights are stored."""

    # The mesh axis over which rows of the modulation lie, or None.
    axis: str | None

    def layer(self, params: Any) -> Any:
        """One layer's weights, whole, from what is stored of them."""
        ...


class Whole:
    """Every device holds all weights."""

    axis: str | None = None

    def layer(self, params: Any) -> Any:
        """The weights as they are."""
        return params


WHOLE = Whole()


class Gathered:
    """Weights whose parts lie over the mesh axis `fsdp`; to be used inside `jax.shard_map`.

    Args:
      specs: PartitionSpecs of the weights of one network, nested dicts; layers stacked in front.
      compute: in the same structure, the dtype in which each is read, or None.
      stacked: path of the stacked layers inside the tree.
      reduce_dtype: in which gradients are summed over the devices.
    """

    axis: str | None = AXIS

    def __init__(self, specs: Any, compute: Any, stacked: tuple[str, ...], reduce_dtype: str):
        self._stacked = stacked
        self._reduce_dtype = reduce_dtype
        self._dims = jax.tree.map(dimension, specs, is_leaf=lambda x: isinstance(x, P))
        self._compute = compute

    def layer(self, params: Any) -> Any:
        """The whole weights of one layer, taken off the stack."""
        dims, compute = _at(self._dims, self._stacked), _at(self._compute, self._stacked)
        return self._gather(params, dims, compute, stack=1)

    def outside(self, params: Any, left: tuple[str, ...]) -> Any:
        """The tree with all weights whole but those below the keys `left`."""
        return {
            key: value
            if key in left
            else self._gather(value, self._dims[key], self._compute[key], stack=0)
            for key, value in params.items()
        }

    def _gather(self, node: Any, dims: Any, compute: Any, stack: int) -> Any:
        if isinstance(node, dict):
            return {
                key: self._gather(value, dims[key], compute[key], stack)
                for key, value in node.items()
            }
        if dims is None:
            return node
        dtype = jnp.dtype(compute or node.dtype)
        whole = gather(node, dims - stack, dtype.name, self._reduce_dtype)
        # No remat policy keeps it for the backward pass: all layers' would be the whole network.
        return checkpoint_name(whole, "weights")


def dimension(spec: P) -> int | None:
    """The dimension of an array that lies over `fsdp`."""
    for index, axes in enumerate(spec):
        if axes == AXIS or (isinstance(axes, tuple) and AXIS in axes):
            return index
    return None


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def gather(w: Any, dim: int, dtype: str, reduce_dtype: str) -> Any:
    """The whole array from its parts over `fsdp`, cast before it travels.

    The backward pass sums the gradient over the devices in `reduce_dtype` and leaves each device
    its part, in the dtype of `w`.

    Args:
      w: this device's part.
      dim: the dimension that lies over `fsdp`.
      dtype: of the result.
      reduce_dtype: of the sum of gradients.
    """
    return _forward(w, dim, dtype, reduce_dtype)[0]


def _forward(w: Any, dim: int, dtype: str, reduce_dtype: str) -> tuple[Any, Any]:
    part = w.astype(dtype)
    rows = _flat(part, dim)
    whole = jax.lax.all_gather(rows, AXIS, axis=min(dim, rows.ndim - 1), tiled=True)
    shape = list(part.shape)
    shape[dim] *= jax.lax.axis_size(AXIS)
    return whole.reshape(shape), jnp.zeros((0,), w.dtype)


def _backward(dim: int, dtype: str, reduce_dtype: str, like: Any, gradient: Any) -> tuple[Any]:
    first = jnp.moveaxis(gradient.astype(reduce_dtype), dim, 0)
    rows = first.reshape(first.shape[0], -1)
    # The TPU's compiler scatters rows that lie together in memory, and sums the whole otherwise.
    rows = with_layout_constraint(rows, Layout((0, 1)))
    summed = jax.lax.psum_scatter(rows, AXIS, scatter_dimension=0, tiled=True)
    part = summed.reshape(-1, *first.shape[1:])
    return (jnp.moveaxis(part, 0, dim).astype(like.dtype),)


gather.defvjp(_forward, _backward)


def _flat(x: Any, dim: int) -> Any:
    """Rows of full length where the first dimension travels: narrow ones would be padded."""
    return x.reshape(x.shape[0], -1) if dim == 0 and x.ndim > 2 else x


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree
