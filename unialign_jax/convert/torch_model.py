"""The dual-stream transformer in plain PyTorch, NCHW, with the reference's names.

Written from the description in the goldens' README and proven on the goldens. `convert --check`,
the tests and the benchmarks load weights into it with strict=True; it imports torch and is imported
only by them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unialign_jax.convert.torch_layers import (
    Adapter,
    Attention,
    Convolution,
    FeedForward,
    Linear,
    Modulation,
    PatchEmbed,
    Sizes,
    TimeEmbedder,
    layer_norm,
    time_sincos,
    wide,
)


class Block(nn.Module):
    """One joint block."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        width = sizes.width
        self.norm1, self.norm1_context = Modulation(width, 6), Modulation(width, 6)
        self.attn = Attention(width, sizes.heads)
        self.ff, self.ff_context = FeedForward(width), FeedForward(width)

    def forward(
        self, image: Tensor, text: Tensor, temb: Tensor, trace: dict | None, wanted: Sequence[int]
    ) -> list[Tensor]:
        """`wanted` are the streams that somebody reads; the others come back as they are."""
        mods = self.norm1(temb), self.norm1_context(temb)
        streams = [image, text]
        inputs = [
            layer_norm(x) * (1 + mod[1][:, None]) + mod[0][:, None]
            for x, mod in zip(streams, mods, strict=True)
        ]
        mixed = self.attn(*inputs)
        outputs = self.attn.to_out[0], self.attn.to_add_out
        attended = {i: outputs[i](mixed[i]) for i in wanted}
        if trace is not None:
            names = ("gate_msa", "shift_mlp", "scale_mlp", "gate_mlp")
            for name, x, mod in zip(("norm1", "norm1_context"), inputs, mods, strict=True):
                trace[f"{name}_x"] = x
                trace.update({f"{name}_{n}": m for n, m in zip(names, mod[2:], strict=True)})
            trace["attn_image"], trace["attn_text"] = attended[0], attended[1]
        for i, ff in enumerate((self.ff, self.ff_context)):
            if i in wanted:
                _, _, gate, shift, scale, gate_mlp = (m[:, None] for m in mods[i])
                x = streams[i] + (gate * wide(attended[i])).to(streams[i].dtype)
                inner = ff(layer_norm(x) * (1 + scale) + shift)
                streams[i] = x + (gate_mlp * wide(inner)).to(x.dtype)
        return streams


@dataclasses.dataclass(frozen=True)
class Streams:
    """Tokens after the last block.

    Attributes:
      image: [B, N, D] of the target.
      text: [B, L, D].
      temb: [B, D], embedding of the timestep.
      middle: both after `block_depth` blocks.
    """

    image: Tensor
    text: Tensor
    temb: Tensor
    middle: tuple[Tensor, Tensor] | None


class Transformer(nn.Module):
    """Returns (velocity, logits, hidden, text hidden, mid image, mid text) as the reference."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        width = sizes.width
        self.sizes = sizes
        self.float16_time_features = False
        self.pos_embed = PatchEmbed(sizes)
        self.time_text_embed = nn.ModuleDict({"timestep_embedder": TimeEmbedder(width)})
        self.context_embedder = Linear(sizes.text_width, width)
        self.null_image_embd = nn.Parameter(torch.zeros(1, sizes.null_tokens, width))
        self.transformer_blocks = nn.ModuleList([Block(sizes) for _ in range(sizes.layers)])
        self.image_norm_out = Modulation(width, 2)
        self.image_proj_out = nn.Linear(width, sizes.patch**2 * sizes.channels)
        self.text_proj_out = Linear(width, sizes.vocab)
        self.siglip_adapter_img, self.siglip_adapter_text = Adapter(sizes), Adapter(sizes)

    def compute_in(self, dtype: torch.dtype) -> Transformer:
        """Tokens and their layers in `dtype`; parameters, norms and modulation stay as they are."""
        for module in self.modules():
            if isinstance(module, (Linear, Convolution)):
                module.compute = dtype
        return self

    def forward(
        self,
        text: Tensor,
        timestep: Tensor,
        latents: Tensor | None = None,
        conditions: Sequence[Tensor] = (),
        block_depth: int | None = None,
        *,
        sincos: Tensor | None = None,
        trace: dict | None = None,
    ):
        """Every output; `sincos` and `trace` as for `trunk`."""
        streams = self.trunk(
            text, timestep, latents, conditions, block_depth, sincos=sincos, trace=trace
        )
        mid_image = mid_text = None
        if streams.middle is not None:
            mid_image = self.siglip_adapter_img(streams.middle[0])
            mid_text = self.siglip_adapter_text(streams.middle[1])
        logits, text_hidden = self.text_head(streams)
        if latents is None:
            return streams.image, logits, streams.image, text_hidden, mid_image, mid_text
        velocity, hidden = self.image_head(streams, *latents.shape[2:])
        return velocity, logits, hidden, text_hidden, mid_image, mid_text

    def trunk(
        self,
        text: Tensor,
        timestep: Tensor,
        latents: Tensor | None = None,
        conditions: Sequence[Tensor] = (),
        block_depth: int | None = None,
        *,
        last: Sequence[int] = (0, 1),
        sincos: Tensor | None = None,
        trace: dict | None = None,
    ) -> Streams:
        """All blocks.

        Args:
          text: [B, L, E] embeddings.
          timestep: [B] on the scale 0..1000.
          latents: [B, C, H, W], or None for the null image.
          conditions: further images of that shape.
          block_depth: blocks after which the streams are kept for the adapters.
          last: the streams (0 image, 1 text) that are read after the last block.
          sincos: replaces the time features.
          trace: if given, is filled with intermediates.
        """
        kept = {} if trace is None else trace
        if latents is None:
            image = self.null_image_embd.expand(text.shape[0], -1, -1)
            target = self.sizes.null_tokens
        else:
            parts = [self.pos_embed(x) for x in (latents, *conditions)]
            kept.update({f"patch_tokens_{k}": x for k, x in enumerate(parts)})
            image, target = torch.cat(parts, dim=1), parts[0].shape[1]
        features = time_sincos(timestep) if sincos is None else sincos
        if self.float16_time_features:
            features = features.to(torch.float16).to(text.dtype)
        temb = self.time_text_embed["timestep_embedder"](features)
        words = self.context_embedder(text)
        image = image.to(words.dtype)
        kept.update(time_sincos=features, temb=temb, context=words)
        middle = None
        for i, block in enumerate(self.transformer_blocks):
            inner = {} if i == 0 and trace is not None else None
            wanted = last if i + 1 == len(self.transformer_blocks) != block_depth else (0, 1)
            image, words = block(image, words, temb, inner, wanted)
            kept.update({f"block{i}_{name}": x for name, x in (inner or {}).items()})
            kept.update({f"block{i}_hidden": image, f"block{i}_text": words})
            if i + 1 == block_depth:
                middle = image[:, :target], words
        return Streams(image[:, :target], words, temb, middle)

    def text_head(self, streams: Streams) -> tuple[Tensor, Tensor]:
        """Logits [B, L, V] and the hidden tokens that they are made of."""
        hidden = layer_norm(streams.text)
        return wide(self.text_proj_out(hidden)), hidden

    def image_head(self, streams: Streams, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Velocity [B, C, H, W] and the hidden tokens that it is made of."""
        scale, shift = self.image_norm_out(streams.temb)
        hidden = layer_norm(streams.image) * (1 + scale[:, None]) + shift[:, None]
        return self.unpatchify(self.image_proj_out(hidden), height, width), hidden

    def unpatchify(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """Tokens of (row in patch, column in patch, channel) to an image."""
        p = self.sizes.patch
        patches = tokens.view(tokens.shape[0], height // p, width // p, p, p, -1)
        return torch.einsum("nhwpqc->nchpwq", patches).reshape(len(tokens), -1, height, width)
