"""Attention by cuDNN's fused kernel: NVIDIA GPUs in 16-bit types."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
from jax.ad_checkpoint import checkpoint_name

from unialign_jax.models.attention.xla import CHECKPOINT_NAME

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def attend(
    q: Float[Array, "B T H K"], k: Float[Array, "B S H K"], v: Float[Array, "B S H K"]
) -> Float[Array, "B T H K"]:
    """softmax(q k^T / sqrt(K)) v without the logits in memory.

    Raises:
      RuntimeError: by jax, where the GPU or its cuDNN has no such kernel for these shapes.
    """
    out = jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    return checkpoint_name(out, CHECKPOINT_NAME)
