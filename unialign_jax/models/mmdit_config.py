"""Sizes and switches of the MMDiT."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax

from unialign_jax.models.attention import BACKENDS, CONTEXT_METHODS, Backend, ContextMethod
from unialign_jax.models.checks import check_dtype, check_sizes

MAX_CONDITIONS = 3
PREDICTIONS = ("velocity", "image")
_POLICIES = jax.checkpoint_policies
# What the backward pass finds saved of a block; it computes the rest anew. Names are those of
# `checkpoint_name`: attention tags its output (and what its kernels keep) and, for splash, the
# queries, keys and values as the kernel reads them, which stand in for the products that made them;
# gathered weights are never kept, since all layers' together are the whole network.
REMAT_POLICIES = {
    "full": _POLICIES.nothing_saveable,
    "attention": _POLICIES.save_only_these_names("attention"),
    "dots": _POLICIES.save_from_both_policies(
        _POLICIES.dots_with_no_batch_dims_saveable,
        _POLICIES.save_only_these_names("attention_inputs"),
    ),
    "dots_attention": _POLICIES.save_from_both_policies(
        _POLICIES.dots_with_no_batch_dims_saveable,
        _POLICIES.save_only_these_names("attention_inputs", "attention"),
    ),
    "offload": _POLICIES.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["attention"],
        offload_src="device",
        offload_dst="pinned_host",
    ),
    "none": _POLICIES.save_anything_except_these_names("weights"),
}


@dataclasses.dataclass(frozen=True)
class MMDiTConfig:
    """Sizes and switches of the network; the defaults are UniAlignment's 2.1 B model.

    Attributes:
      width: channels D of both streams.
      heads: attention heads H; the head dimension K is width / heads.
      layers: number of joint blocks.
      patch_size: side P of an image patch, in latent pixels.
      channels: channels C of the latents.
      text_width: channels E of the text embeddings.
      vocab_size: tokens V that the text head predicts.
      sample_size: latent side for which one cell of the position table is one patch.
      position_table_size: side of the sin-cos table, in cells.
      null_image_tokens: learned tokens that stand for a missing image.
      adapter_hidden: hidden width of the semantic adapters.
      adapter_out: width A of their output, that of the teacher's features.
      stem_channels: channels S of a `stem.Stem`, two convolutions to S and 2 S channels whose
        patches are added to the patch embeddings; 0 is the reference, which has none. Changes the
        weights.
      detail_channels: channels S of `details.Details`, convolutions at full resolution that are
        added to the image head's output; 0 is the reference, which has none. Changes the weights.
      text_positions: number of learned text positions; 0 is the reference,
        whose text tokens carry no absolute position. Changes the weights.
      positions_std: standard deviation of the initial `text_positions` and `condition_segments`. 0
        leaves a network that they are added to as it was; one that is trained from the start tells
        positions apart from its first step with 1.
      condition_segments: learned embedding that tells conditions from the
        target; the reference has none. Changes the weights.
      qk_norm: learned root-mean-square norms of queries and keys, as in Stable Diffusion 3.5; the
        reference has none. Changes the weights.
      rotary_fastest: radians per patch by which rotary embeddings turn the first channels of image
        queries and keys; 0 is the reference, which has none. With a few radians, attention can tell
        neighbouring patches apart, and find the same place in another image, before it has learned
        to. Changes what the weights mean.
      rotary_slowest: radians per patch of the last channels.
      rotary_bias: initial bias of the first head's image queries and keys; above 1, and with rotary
        embeddings, that head looks at one place in all images from the first step on. Only where
        training starts.
      initial_gates: of the residual branches. 0 is AdaLN-Zero: every block starts as the identity
        (the reference). A small network learns sooner with 1. Only where training starts.
      prediction: what the image head's output is. "velocity" is the reference; "image" is the clean
        image, from which the velocity follows (arXiv 2511.13720): the noise need not pass through a
        narrow network. Changes the weights.
      time_features_float16: rounds the time features to float16, as published.
      dtype: compute dtype of the blocks; parameters, norms, time and modulation are float32.
      remat: a key of `REMAT_POLICIES`: what the backward pass need not compute anew.
      attention: "auto", or one of `attention.BACKENDS`; "auto" follows platform, dtype and length.
      context_attention: how tokens that lie over the mesh axis `context` see each other, one of
        `attention.CONTEXT_METHODS`.
      branches: "together" runs all branches of a step through one scan, so that a layer's weights
        are gathered once per direction for all of them; "apart" runs one after the other.
      unroll: compiles every block by itself instead of one for all: small networks step faster on
        a CPU, compile time grows with the depth. Does not change the weights.
    """

    width: int = 1536
    heads: int = 24
    layers: int = 24
    patch_size: int = 2
    channels: int = 16
    text_width: int = 4096
    vocab_size: int = 32100
    sample_size: int = 128
    position_table_size: int = 192
    null_image_tokens: int = 8
    adapter_hidden: int = 2048
    adapter_out: int = 3584
    stem_channels: int = 0
    detail_channels: int = 0
    text_positions: int = 0
    positions_std: float = 0.0
    condition_segments: bool = False
    qk_norm: bool = False
    rotary_fastest: float = 0.0
    rotary_slowest: float = 1e-4
    rotary_bias: float = 0.0
    initial_gates: float = 0.0
    prediction: str = "velocity"
    time_features_float16: bool = False
    dtype: str = "float32"
    remat: str = "none"
    attention: Backend | Literal["auto"] = "auto"
    context_attention: ContextMethod = "ring"
    branches: Literal["together", "apart"] = "together"
    unroll: bool = False

    def __post_init__(self) -> None:
        check_dtype("dtype", self.dtype)
        check_sizes(
            self,
            *("width", "heads", "layers", "patch_size", "channels", "text_width", "vocab_size"),
            *("sample_size", "position_table_size", "null_image_tokens"),
            *("adapter_hidden", "adapter_out"),
        )
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}")
        for name in ("stem_channels", "detail_channels"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"{name} {getattr(self, name)} must be a count of channels, or 0 for none"
                )
        if self.rotary_fastest:
            if self.rotary_fastest < 0 or self.rotary_slowest <= 0:
                raise ValueError(
                    f"rotary_fastest {self.rotary_fastest} and rotary_slowest "
                    f"{self.rotary_slowest} must be above 0 radians per patch"
                )
            if self.width // self.heads % 4:
                raise ValueError(
                    f"rotary embeddings need a head dimension that 4 divides, not "
                    f"{self.width // self.heads}"
                )
        if self.prediction not in PREDICTIONS:
            raise ValueError(
                f"prediction {self.prediction!r} is not one of {', '.join(PREDICTIONS)}"
            )
        for name, allowed in (
            ("remat", REMAT_POLICIES),
            ("attention", ("auto", *BACKENDS)),
            ("context_attention", CONTEXT_METHODS),
            ("branches", ("together", "apart")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} {getattr(self, name)!r} is not one of {', '.join(allowed)}"
                )
