"""Attention by JAX's splash kernel (Pallas): TPUs, or any CPU in interpret mode.

The Pallas modules are imported when a kernel is made, so that models import without them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from unialign_jax.models.attention.xla import CHECKPOINT_NAME, INPUTS_NAME

if TYPE_CHECKING:
    from jaxtyping import Array, Float

# A TPU's vector width: blocks are multiples of it, other lengths are padded up to one.
LANES = 128


@dataclass(frozen=True)
class SplashSettings:
    """How the kernel is tiled; no choice here changes a result beyond rounding.

    Attributes:
      largest_block: the longest tile of queries or keys; a tile is the largest multiple of 128
        up to it that divides the length.
      longest_fused: up to so many keys one kernel that holds them all makes the gradients of q, k
        and v: 5 products of a block. Beyond, two kernels need 7. None: `longest_fused`.
      tokens_minor: q, k and v lie in memory with tokens, not head channels, in the last place.
    """

    largest_block: int = 768
    longest_fused: int | None = None
    tokens_minor: bool = True


DEFAULTS = SplashSettings()


def block_length(length: int, largest: int) -> int:
    """The largest multiple of 128, at most `largest`, that divides a multiple of 128."""
    blocks = range(LANES, max(largest, LANES) + 1, LANES)
    return max(block for block in blocks if length % block == 0)


def longest_fused(dtype: Any, head_dim: int) -> int:
    """Keys that one backward kernel can hold in the vector memory of the TPUs planned for.

    Compiled for v5e, v5p, v6e and TPU7x up to these numbers; v5p refuses 3072 keys in float32 and
    3840 of 128 channels in bfloat16.
    """
    return 4352 if jnp.dtype(dtype).itemsize == 2 and head_dim <= 64 else 2560


def attend(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S H K"],
    v: Float[Array, "B S H K"],
    settings: SplashSettings = DEFAULTS,
    interpret: bool = False,
) -> Float[Array, "B T H K"]:
    """softmax(q k^T / sqrt(K)) v without the logits in memory; the softmax in float32.

    Args:
      q: queries.
      k: keys.
      v: values.
      settings: tiling.
      interpret: run the kernel as ordinary operations, where there is no TPU.
    """
    heads_first = [x.transpose(0, 2, 1, 3) for x in (q * q.shape[-1] ** -0.5, k, v)]
    padded, segments = _padded(*heads_first)
    padded = tuple(checkpoint_name(x, INPUTS_NAME) for x in padded)
    kernel = _kernel(padded[0], padded[1], settings, interpret)
    out = jax.vmap(kernel, in_axes=(0, 0, 0, None))(*padded, segments)
    return out[:, :, : q.shape[1]].transpose(0, 2, 1, 3)


@dataclass(frozen=True)
class SplashBlock:
    """One step of ring attention by the same kernels; see `XlaBlock` for what the methods return.

    The kernel's own gradient knows only its own keys. `backward` therefore calls the backward
    kernels below it, which take any output and log-sum-exp; that function of JAX is private, and
    tests/models/attention hold it to the reference.
    """

    settings: SplashSettings = DEFAULTS
    interpret: bool = False

    def forward(
        self, q: Float[Array, "B H T K"], k: Float[Array, "B H S K"], v: Float[Array, "B H S K"]
    ) -> tuple[Float[Array, "B H T K"], Float[Array, "B H T"]]:
        """The softmax over these keys alone and its log-sum-exp."""
        padded, segments = _padded(q, k, v)
        kernel = _kernel(padded[0], padded[1], self.settings, self.interpret, save_residuals=True)
        out, (lse,) = jax.vmap(kernel, in_axes=(0, 0, 0, None))(*padded, segments)
        length = q.shape[2]
        return out[:, :, :length].astype(jnp.float32), lse[:, :, :length]

    def backward(
        self,
        q: Float[Array, "B H T K"],
        k: Float[Array, "B H S K"],
        v: Float[Array, "B H S K"],
        out: Float[Array, "B H T K"],
        lse: Float[Array, "B H T"],
        d_out: Float[Array, "B H T K"],
    ) -> tuple[Float[Array, "B H T K"], Float[Array, "B H S K"], Float[Array, "B H S K"]]:
        """This block's share of the gradients, in float32."""
        from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

        (q_pad, k_pad, v_pad), segments = _padded(q, k, v)
        kernel = _kernel(q_pad, k_pad, self.settings, self.interpret)
        options = dict(kernel.kwargs, save_residuals=False)

        def of_one_sample(q: Any, k: Any, v: Any, out: Any, lse: Any, d_out: Any) -> Any:
            masks = kernel.dq_mask_info, kernel.dkv_mask_info
            saved = (q, k, v, segments, None, out, lse, *masks)
            return splash_attention_kernel._splash_attention_bwd(**options, res=saved, do=d_out)[
                3:6
            ]

        out, d_out, lse = (_lengthened(x, q_pad.shape[2]) for x in (out, d_out, lse))
        gradients = jax.vmap(of_one_sample)(q_pad, k_pad, v_pad, out, lse, d_out)
        pairs = zip(gradients, (q, k, v), strict=True)
        d_q, d_k, d_v = (g[:, :, : x.shape[2]].astype(jnp.float32) for g, x in pairs)
        return d_q, d_k, d_v


def _padded(q: Any, k: Any, v: Any) -> tuple[tuple[Any, Any, Any], Any]:
    """q, k, v [B H T K] up to multiples of 128, and segment ids that hide the keys added.

    The ids are None where no key is added: a mask costs the kernel time.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    queries, keys = (-(-x.shape[2] // LANES) * LANES for x in (q, k))
    segments = None
    if keys != k.shape[2]:
        # Queries that are added see the keys too: a row without any key would divide by 0.
        segments = splash_attention_kernel.SegmentIds(
            jnp.zeros(queries, jnp.int32), (jnp.arange(keys) >= k.shape[2]).astype(jnp.int32)
        )
    return (_lengthened(q, queries), _lengthened(k, keys), _lengthened(v, keys)), segments


def _lengthened(x: Any, length: int) -> Any:
    """Zeros behind the tokens of [B H T ...]."""
    missing = length - x.shape[2]
    return jnp.pad(x, ((0, 0), (0, 0), (0, missing)) + ((0, 0),) * (x.ndim - 3)) if missing else x


def _kernel(
    q: Any, k: Any, settings: SplashSettings, interpret: bool, save_residuals: bool = False
) -> Any:
    """The kernel for one sample's q [H T K] and k [H S K], without a mask."""
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as kernels,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    heads, queries, keys = q.shape[1], q.shape[2], k.shape[2]
    block_q = block_length(queries, settings.largest_block)
    block_kv = block_length(keys, settings.largest_block)
    layout = kernels.QKVLayout.HEAD_DIM_MINOR
    if settings.tokens_minor:
        layout = kernels.QKVLayout.SEQ_MINOR
    most = settings.longest_fused
    fused = keys <= (longest_fused(k.dtype, k.shape[-1]) if most is None else most)
    blocks = kernels.BlockSizes(
        block_q=block_q,
        block_kv=block_kv,
        block_q_dkv=block_q,
        # A fused kernel writes a share of q's gradient per block of keys: with one, it is the sum.
        block_kv_dkv=keys if fused else block_kv,
        block_kv_dkv_compute=block_kv,
        block_q_dq=None if fused else block_q,
        block_kv_dq=None if fused else block_kv,
        use_fused_bwd_kernel=fused,
        q_layout=layout,
        k_layout=layout,
        v_layout=layout,
    )
    return kernels.make_splash_mha(
        masks.MultiHeadMask([masks.FullMask((queries, keys))] * heads),
        block_sizes=blocks,
        head_shards=1,
        q_seq_shards=1,
        save_residuals=save_residuals,
        # The backward kernels need the output and the log-sum-exp; both carry the name.
        residual_checkpoint_name=None if save_residuals else CHECKPOINT_NAME,
        interpret=interpret,
    )
