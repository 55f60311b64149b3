"""Qwen2.5-VL's vision tower with its merger (arXiv 2502.13923): patches of images to tokens.

A transformer over the patches of one or more images: RMS norms, gated SiLU MLPs, two-dimensional
rotary positions. Most blocks attend within square windows, a few over the whole image; images, and
the frames of a video, never see each other. The merger then joins each square of merge x merge
patches into one token.

The blocks are stacked on a leading axis and scanned, and whether a block looks
at windows or at whole images is scanned with them, so that compile time does not grow with depth.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unialign_jax.models import rotary
from unialign_jax.models.layers import linear
from unialign_jax.models.teachers.qwen_layout import (
    Layout,
    QwenVisionConfig,
    layout,
    segments,
)

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

_NORM_EPSILON = 1e-6
_INITIAL_DEVIATION = 0.02


def _linear(config: QwenVisionConfig, features_in, features_out, axes, rngs, *, use_bias=True):
    return linear(
        features_in,
        features_out,
        axes,
        rngs=rngs,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        use_bias=use_bias,
        kernel_init=nnx.initializers.normal(_INITIAL_DEVIATION),
    )


def _norm(config: QwenVisionConfig, rngs: nnx.Rngs) -> nnx.RMSNorm:
    return nnx.RMSNorm(
        config.width,
        epsilon=_NORM_EPSILON,
        dtype=jnp.float32,
        param_dtype=jnp.dtype(config.param_dtype),
        scale_metadata={"axes": (None,)},
        rngs=rngs,
    )


class QwenVisionBlock(nnx.Module):
    """Self-attention and gated MLP, each behind an RMS norm and added to the residual stream."""

    def __init__(self, config: QwenVisionConfig, rngs: nnx.Rngs):
        width, heads, mlp = config.width, config.heads, config.mlp_width
        self.attention_norm = _norm(config, rngs)
        qkv_axes = ("embed", None, "heads", "kv")
        self.qkv = _linear(config, width, (3, heads, width // heads), qkv_axes, rngs)
        self.out = _linear(config, width, width, ("heads", "embed"), rngs)
        self.mlp_norm = _norm(config, rngs)
        self.gate = _linear(config, width, mlp, ("embed", "mlp"), rngs)
        self.up = _linear(config, width, mlp, ("embed", "mlp"), rngs)
        self.down = _linear(config, mlp, width, ("mlp", "embed"), rngs)

    def __call__(
        self,
        x_BPE: Float[Array, "B P E"],
        turn: tuple[Float[np.ndarray, "P half"], Float[np.ndarray, "P half"]],
        mask_PP: Bool[Array, "P P"],
    ) -> Float[Array, "B P E"]:
        """One block; `turn` is cosine and sine, `mask_PP` [query, key] True for keys to look at."""
        x_BPE = x_BPE + self._attend(self.attention_norm(x_BPE), turn, mask_PP)
        h_BPE = self.mlp_norm(x_BPE)
        return x_BPE + self.down(jax.nn.silu(self.gate(h_BPE)) * self.up(h_BPE))

    def _attend(self, h_BPE, turn, mask_PP):
        q_BPHK, k_BPHK, v_BPHK = jnp.moveaxis(self.qkv(h_BPE), -3, 0)
        q_BPHK, k_BPHK = (rotary.rotate(x, *turn) for x in (q_BPHK, k_BPHK))
        logits = jnp.einsum("BQHK,BSHK->BHQS", q_BPHK, k_BPHK, preferred_element_type=jnp.float32)
        logits = logits * q_BPHK.shape[-1] ** -0.5
        logits = jnp.where(mask_PP, logits, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(logits, axis=-1).astype(v_BPHK.dtype)
        return self.out(jnp.einsum("BHQS,BSHK->BQHK", weights, v_BPHK).reshape(h_BPE.shape))


class QwenMerger(nnx.Module):
    """Joins the channels of each square of patches and projects them to the tokens' width."""

    def __init__(self, config: QwenVisionConfig, rngs: nnx.Rngs):
        inner = config.width * config.merge**2
        self.norm = _norm(config, rngs)
        self.up = _linear(config, inner, inner, ("embed", "mlp"), rngs)
        self.down = _linear(config, inner, config.out_width, ("mlp", "embed"), rngs)

    def __call__(self, x_BPE: Float[Array, "B P E"]) -> Float[Array, "B N O"]:
        """Patches of one token follow each other."""
        h_BPE = self.norm(x_BPE)
        h_BNF = h_BPE.reshape(h_BPE.shape[0], -1, self.up.in_features[0])
        return self.down(jax.nn.gelu(self.up(h_BNF), approximate=False))


class QwenVision(nnx.Module):
    """Patches of images to tokens.

    Args:
      config: sizes and dtypes.
      rngs: source of the initial parameters (stream "params").
    """

    def __init__(self, config: QwenVisionConfig, rngs: nnx.Rngs):
        self.config = config
        self.patch = _linear(
            config, config.patch_channels, config.width, (None, "embed"), rngs, use_bias=False
        )

        @nnx.split_rngs(splits=config.depth)
        @nnx.vmap(in_axes=0, out_axes=0)
        def stacked(rngs: nnx.Rngs) -> QwenVisionBlock:
            return QwenVisionBlock(config, rngs)

        self.blocks = stacked(rngs)
        self.merger = QwenMerger(config, rngs)

    def block_states(
        self, patches: Float[Array, "B P C"], grid: Iterable[Sequence[int]]
    ) -> Float[Array, "depth B P E"]:
        """The state after every block, patches sorted by window; arguments as `__call__`."""
        return self._scan(patches, self._layout(patches, grid), keep=True)

    def __call__(
        self,
        patches: Float[Array, "P C"] | Float[Array, "B P C"],
        grid: Iterable[Sequence[int]],
    ) -> Float[Array, "N O"] | Float[Array, "B N O"]:
        """Encodes one row of patches, or a batch of rows that all have the same grid.

        Images of a row do not see each other, nor do the rows; a batch of equally sized images is
        cheaper as rows than in one row, where the attention is quadratic in all of them.

        Args:
          patches: normalised pixels as `qwen_images.patches` makes them, the patches of a token
            next to each other.
          grid: (frames, rows, columns) in patches of each image in a row; not traced.

        Returns:
          N = P / merge^2 tokens in row-major order, image after image, in `config.dtype`.

        Raises:
          ValueError: the grid is none, or is not that of so many patches.
        """
        batch_BPC = patches if patches.ndim == 3 else patches[None]
        arrangement = self._layout(batch_BPC, grid)
        merged_BNO = self.merger(self._scan(batch_BPC, arrangement, keep=False))
        tokens_BNO = merged_BNO[:, np.argsort(arrangement.order)]
        return tokens_BNO if patches.ndim == 3 else tokens_BNO[0]

    def _layout(self, patches: Any, grid: Iterable[Sequence[int]]) -> Layout:
        arrangement = layout(grid, self.config)
        expected = (int(arrangement.frame_ends[-1]), self.config.patch_channels)
        if patches.ndim != 3 or patches.shape[1:] != expected:
            raise ValueError(
                f"patches are {tuple(patches.shape)}, the grid needs (batch, {expected[0]}, "
                f"{expected[1]}); give the grid that was made with them"
            )
        return arrangement

    def _scan(self, patches_BPC: Any, arrangement: Layout, *, keep: bool) -> Any:
        by_window = arrangement.sort(np.arange(patches_BPC.shape[1]))
        angles = arrangement.sort(arrangement.angles).astype(np.float64)
        turn = (np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32))
        frame_P, window_P = (
            jnp.asarray(segments(ends))
            for ends in (arrangement.frame_ends, arrangement.window_ends)
        )
        structure, layers = nnx.split(self.blocks)
        is_full = np.isin(np.arange(self.config.depth), self.config.full_blocks)

        def block(x_BPE, scanned):
            state, full = scanned
            segment_P = jnp.where(full, frame_P, window_P)
            mask_PP = segment_P[:, None] == segment_P
            x_BPE = nnx.merge(structure, state)(x_BPE, turn, mask_PP)
            return x_BPE, x_BPE if keep else None

        x_BPE = self.patch(patches_BPC)[:, by_window]
        x_BPE, states = jax.lax.scan(block, x_BPE, (layers, jnp.asarray(is_full)))
        return states if keep else x_BPE
