"""Attention over tokens that lie on the devices of one mesh axis.

Both functions run inside `jax.shard_map` with that axis manual: each device holds a part of the
queries, keys and values of every sample. Without a mask the order of the keys does not matter, so
each device may hold any of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from unialign_jax.models.attention.xla import CHECKPOINT_NAME

if TYPE_CHECKING:
    from jaxtyping import Array, Float

ContextMethod = Literal["ring", "all_gather"]
CONTEXT_METHODS: tuple[ContextMethod, ...] = ("ring", "all_gather")


class Block(Protocol):
    """Attention of local queries to one device's keys: `XlaBlock` or `SplashBlock`."""

    def forward(self, q: Any, k: Any, v: Any) -> tuple[Any, Any]:
        """(output, log-sum-exp), both float32."""
        ...

    def backward(
        self, q: Any, k: Any, v: Any, out: Any, lse: Any, d_out: Any
    ) -> tuple[Any, Any, Any]:
        """Shares of (d_q, d_k, d_v), float32, given the output over all keys."""
        ...


def all_gather_attention(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H K"],
    attend: Callable[[Any, Any, Any], Any],
    axis: str,
) -> Float[Array, "B T H K"]:
    """Local queries to the keys and values of all devices, gathered before.

    One collective per direction, for the memory of all keys and values on every device. The
    gradients of k and v are summed over the devices in the type of k and v.

    Args:
      q: this device's queries.
      k: this device's keys.
      v: this device's values.
      attend: attention on one device.
      axis: the mesh axis.
    """
    k, v = (jax.lax.all_gather(x, axis, axis=1, tiled=True) for x in (k, v))
    return attend(q, k, v)


def ring_attention(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H K"],
    block: Block,
    axis: str,
) -> Float[Array, "B T H K"]:
    """Local queries to keys and values that pass from device to device (arXiv:2310.01889).

    A device never holds more than two blocks of keys. The backward pass keeps the local q, k, v,
    output and log-sum-exp, and sends keys, values and their float32 gradients round once more.

    Args:
      q: this device's queries.
      k: this device's keys.
      v: this device's values.
      block: attention to one block of keys.
      axis: the mesh axis.
    """
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q * q.shape[-1] ** -0.5, k, v))
    return jnp.transpose(_ring(q, k, v, block, axis), (0, 2, 1, 3))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _ring(q: Any, k: Any, v: Any, block: Block, axis: str) -> Any:
    return _ring_forward(q, k, v, block, axis)[0]


def _ring_forward(q: Any, k: Any, v: Any, block: Block, axis: str) -> tuple[Any, tuple[Any, ...]]:
    out, lse = block.forward(q, k, v)
    passing_k, passing_v = k, v
    for _ in range(jax.lax.axis_size(axis) - 1):
        passing_k, passing_v = _passed_on((passing_k, passing_v), axis)
        more_out, more_lse = block.forward(q, passing_k, passing_v)
        # Both outputs are weighted means; their weights are the shares of the sum of exponentials.
        total = jnp.logaddexp(lse, more_lse)
        out = (
            out * jnp.exp(lse - total)[..., None] + more_out * jnp.exp(more_lse - total)[..., None]
        )
        lse = total
    out = checkpoint_name(out.astype(q.dtype), CHECKPOINT_NAME)
    return out, (q, k, v, out, checkpoint_name(lse, CHECKPOINT_NAME))


def _ring_backward(
    block: Block, axis: str, saved: tuple[Any, ...], d_out: Any
) -> tuple[Any, Any, Any]:
    q, k, v, out, lse = saved
    d_q, d_k, d_v = block.backward(q, k, v, out, lse, d_out)
    for _ in range(jax.lax.axis_size(axis) - 1):
        # The sums of a block of keys travel with it.
        k, v, d_k, d_v = _passed_on((k, v, d_k, d_v), axis)
        more = block.backward(q, k, v, out, lse, d_out)
        d_q, d_k, d_v = (a + b for a, b in zip((d_q, d_k, d_v), more, strict=True))
    d_k, d_v = _passed_on((d_k, d_v), axis)
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype)


_ring.defvjp(_ring_forward, _ring_backward)


def _passed_on(arrays: tuple[Any, ...], axis: str) -> tuple[Any, ...]:
    """What the device before this one held."""
    size = jax.lax.axis_size(axis)
    pairs = [(i, (i + 1) % size) for i in range(size)]
    return tuple(jax.lax.ppermute(x, axis, pairs) for x in arrays)
