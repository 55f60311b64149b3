"""Attention in plain products, which XLA compiles for any device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

if TYPE_CHECKING:
    from jaxtyping import Array, Float

# The names that remat policies save by: attention's outputs, whatever computes them, and the joined
# queries, keys and values in a kernel's layout.
CHECKPOINT_NAME = "attention"
INPUTS_NAME = "attention_inputs"


def attend(
    q: Float[Array, "B T H K"], k: Float[Array, "B S H K"], v: Float[Array, "B S H K"]
) -> Float[Array, "B T H K"]:
    """softmax(q k^T / sqrt(K)) v, the softmax in float32."""
    # A CPU multiplies heads apart in memory at up to half the speed; others choose a layout anyway.
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    logits = jnp.einsum("BHTK,BHSK->BHTS", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits * q.shape[-1] ** -0.5, axis=-1).astype(v.dtype)
    out = jnp.einsum("BHTS,BHSK->BHTK", weights, v)
    return checkpoint_name(jnp.swapaxes(out, 1, 2), CHECKPOINT_NAME)


# Programs of one sample that a batch is cut into at most; each is compiled by itself.
_MOST_PARTS = 8


def attend_by_sample(
    q: Float[Array, "B T H K"], k: Float[Array, "B S H K"], v: Float[Array, "B S H K"]
) -> Float[Array, "B T H K"]:
    """`attend` with logits of one sample at a time: for CPUs, whose caches do not hold them all.

    At most 8 parts of a batch, that do not depend on each other, so that cores work on different
    ones. The sum of a softmax divides the output instead of the weights, which are more.
    benchmarks/attention.py measures it.
    """
    size = q.shape[0]
    rows = next(n for n in range(-(-size // _MOST_PARTS), size + 1) if size % n == 0)
    sizes = (rows,) * (size // rows)
    # Unlike slices, whose gradients are zeros added up, a split's gradient is a concatenation.
    cut = (jax.lax.split(x, sizes) for x in (q * q.shape[-1] ** -0.5, k, v))
    parts = [
        _normalised_after(*(jnp.swapaxes(x, 1, 2) for x in part)) for part in zip(*cut, strict=True)
    ]
    out = jnp.concatenate([jnp.swapaxes(part, 1, 2) for part in parts])
    return checkpoint_name(out, CHECKPOINT_NAME)


def _normalised_after(
    q: Float[Array, "B H T K"], k: Float[Array, "B H S K"], v: Float[Array, "B H S K"]
) -> Float[Array, "B H T K"]:
    """softmax(q k^T) v of scaled queries, divided by the softmax's sum at the end."""
    f32 = jnp.float32
    logits = jnp.einsum("BHTK,BHSK->BHTS", q, k, preferred_element_type=f32)
    largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.exp(logits - largest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = jnp.einsum("BHTS,BHSK->BHTK", weights.astype(v.dtype), v, preferred_element_type=f32)
    return (out / total).astype(q.dtype)


@dataclass(frozen=True)
class XlaBlock:
    """One step of ring attention: queries against the keys that are here. Scaling is the caller's.

    `backward` follows the FlashAttention-2 paper (arXiv:2307.08691, algorithm 2): from the final
    output and log-sum-exp each block's share of the gradients follows without the other blocks.
    """

    def forward(
        self, q: Float[Array, "B H T K"], k: Float[Array, "B H S K"], v: Float[Array, "B H S K"]
    ) -> tuple[Float[Array, "B H T K"], Float[Array, "B H T"]]:
        """The softmax over these keys alone, float32, and the log of the sum it divided by."""
        logits = jnp.einsum("BHTK,BHSK->BHTS", q, k, preferred_element_type=jnp.float32)
        lse = jax.nn.logsumexp(logits, axis=-1)
        weights = jnp.exp(logits - lse[..., None]).astype(v.dtype)
        out = jnp.einsum("BHTS,BHSK->BHTK", weights, v, preferred_element_type=jnp.float32)
        return out, lse

    def backward(
        self,
        q: Float[Array, "B H T K"],
        k: Float[Array, "B H S K"],
        v: Float[Array, "B H S K"],
        out: Float[Array, "B H T K"],
        lse: Float[Array, "B H T"],
        d_out: Float[Array, "B H T K"],
    ) -> tuple[Float[Array, "B H T K"], Float[Array, "B H S K"], Float[Array, "B H S K"]]:
        """This block's share of the gradients of q, and those of its k and v, in float32.

        Args:
          q: queries, scaled.
          k: this block's keys.
          v: this block's values.
          out: the output over the keys of all blocks.
          lse: its log-sum-exp.
          d_out: the gradient of `out`.
        """
        f32 = jnp.float32
        logits = jnp.einsum("BHTK,BHSK->BHTS", q, k, preferred_element_type=f32)
        weights = jnp.exp(logits - lse[..., None])
        inner = jnp.sum(out.astype(f32) * d_out.astype(f32), axis=-1)
        d_weights = jnp.einsum("BHTK,BHSK->BHTS", d_out, v, preferred_element_type=f32)
        d_logits = (weights * (d_weights - inner[..., None])).astype(q.dtype)
        d_q = jnp.einsum("BHTS,BHSK->BHTK", d_logits, k, preferred_element_type=f32)
        d_k = jnp.einsum("BHTS,BHTK->BHSK", d_logits, q, preferred_element_type=f32)
        d_v = jnp.einsum(
            "BHTS,BHTK->BHSK", weights.astype(d_out.dtype), d_out, preferred_element_type=f32
        )
        return d_q, d_k, d_v
