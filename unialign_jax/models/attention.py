"""Scaled dot-product attention behind one function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float

Backend = Literal["xla", "cudnn"]
BACKENDS: tuple[Backend, ...] = ("xla", "cudnn")


def default_backend(dtype: str = "bfloat16") -> Backend:
    """The implementation that `attention` picks on this machine for a compute dtype.

    cuDNN's fused kernel serves NVIDIA GPUs in 16-bit types; XLA serves everything else.
    """
    half = jnp.dtype(dtype) in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))
    return "cudnn" if half and jax.default_backend() == "gpu" else "xla"


def attention(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S H K"],
    v: Float[Array, "B S H K"],
    *,
    backend: Backend | None = None,
) -> Float[Array, "B T H K"]:
    """softmax(q k^T / sqrt(K)) v over all keys, without a mask; softmax in float32.

    Args:
      q: queries.
      k: keys.
      v: values.
      backend: one of `BACKENDS`, or None for `default_backend` of q's dtype.
    """
    if (backend or default_backend(str(q.dtype))) == "cudnn":
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    # The same products as in `jax.nn`, whose reshapes cost a CPU more on short sequences.
    logits = jnp.einsum("BTHK,BSHK->BHTS", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits * q.shape[-1] ** -0.5, axis=-1).astype(v.dtype)
    return jnp.einsum("BHTS,BSHK->BTHK", weights, v)
