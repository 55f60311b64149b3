"""The dual-stream transformer in plain PyTorch, float32, NCHW, with the reference's names.

Written from the description in the goldens' README and proven on the goldens. `convert --check` and
the tests load weights into it with strict=True; it imports torch and is imported only by them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unialign_jax.models.mmdit_config import MMDiTConfig

TIME_FEATURES = 256


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What config.json and extra_config.json say."""

    heads: int = 2
    head_dim: int = 16
    layers: int = 3
    patch: int = 2
    channels: int = 4
    text_width: int = 24
    vocab: int = 128
    sample_size: int = 8
    table_size: int = 8
    null_tokens: int = 8
    adapter_hidden: int = 40
    adapter_out: int = 48
    mask_id: int = 127

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @classmethod
    def from_json(cls, config: dict, extra: dict) -> Sizes:
        return cls(
            heads=config["num_attention_heads"],
            head_dim=config["attention_head_dim"],
            layers=config["num_layers"],
            patch=config["patch_size"],
            channels=config["in_channels"],
            text_width=config["joint_attention_dim"],
            vocab=config["vocab_size"],
            sample_size=config["sample_size"],
            table_size=config["pos_embed_max_size"],
            null_tokens=extra["null_image_tokens"],
            adapter_hidden=extra["adapter_hidden_dim"],
            adapter_out=extra["adapter_out_dim"],
            mask_id=extra["mask_index"],
        )

    @classmethod
    def of(cls, config: MMDiTConfig) -> Sizes:
        """The sizes of one of our networks."""
        return cls(
            heads=config.heads,
            head_dim=config.width // config.heads,
            layers=config.layers,
            patch=config.patch_size,
            channels=config.channels,
            text_width=config.text_width,
            vocab=config.vocab_size,
            sample_size=config.sample_size,
            table_size=config.position_table_size,
            null_tokens=config.null_image_tokens,
            adapter_hidden=config.adapter_hidden,
            adapter_out=config.adapter_out,
        )

    def to_json(self) -> tuple[dict, dict]:
        config = {
            "_class_name": "SD3JointModelFlexible",
            "_diffusers_version": "0.31.0",
            "attention_head_dim": self.head_dim,
            "caption_projection_dim": self.width,
            "dual_attention_layers": [],
            "in_channels": self.channels,
            "joint_attention_dim": self.text_width,
            "num_attention_heads": self.heads,
            "num_layers": self.layers,
            "out_channels": self.channels,
            "patch_size": self.patch,
            "pooled_projection_dim": 12,
            "pos_embed_max_size": self.table_size,
            "qk_norm": None,
            "sample_size": self.sample_size,
            "vocab_size": self.vocab,
        }
        extra = {
            "adapter_hidden_dim": self.adapter_hidden,
            "adapter_out_dim": self.adapter_out,
            "mask_index": self.mask_id,
            "null_image_tokens": self.null_tokens,
        }
        return config, extra


def position_table(sizes: Sizes) -> np.ndarray:
    """float32 [1, M * M, D]; column angles fill the first half of the channels."""
    cells = np.arange(sizes.table_size) * (sizes.sample_size / sizes.patch) / sizes.table_size
    quarter = sizes.width // 4
    angles = cells[:, None] * 10000.0 ** (-np.arange(quarter) / quarter)[None, :]
    encoded = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)  # [M, D / 2]
    shape = (sizes.table_size, sizes.table_size, sizes.width // 2)
    by_column = np.broadcast_to(encoded[None, :, :], shape)
    by_row = np.broadcast_to(encoded[:, None, :], shape)
    table = np.concatenate([by_column, by_row], axis=-1)
    return table.reshape(1, -1, sizes.width).astype(np.float32)


def time_sincos(timestep: Tensor) -> Tensor:
    """[B] on the scale 0..1000 to [B, 256], cosines first."""
    half = TIME_FEATURES // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=timestep.dtype) / half
    # exp in float64, then rounded: float32's last bit depends on the processor.
    frequencies = torch.exp(exponent.double()).to(timestep.dtype)
    angles = timestep[:, None] * frequencies[None, :]
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)


def layer_norm(x: Tensor) -> Tensor:
    """Over channels, without scale and shift."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


class PatchEmbed(nn.Module):
    """Patches by a convolution, and the cropped table of positions."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.sizes = sizes
        self.pos_embed: Tensor
        self.proj = nn.Conv2d(sizes.channels, sizes.width, sizes.patch, stride=sizes.patch)
        self.register_buffer("pos_embed", torch.from_numpy(position_table(sizes)))

    def forward(self, image: Tensor) -> Tensor:
        grid = self.proj(image)
        (h, w), m = grid.shape[2:], self.sizes.table_size
        top, left = (m - h) // 2, (m - w) // 2
        table = self.pos_embed.view(m, m, -1)[top : top + h, left : left + w]
        return grid.flatten(2).transpose(1, 2) + table.flatten(0, 1)[None]


class Modulation(nn.Module):
    """silu(temb) through a linear layer, cut into chunks; the caller knows their order."""

    def __init__(self, width: int, chunks: int):
        super().__init__()
        self.chunks = chunks
        self.linear = nn.Linear(width, chunks * width)

    def forward(self, temb: Tensor) -> tuple[Tensor, ...]:
        return self.linear(F.silu(temb)).chunk(self.chunks, dim=-1)


class Attention(nn.Module):
    """Joint attention of both streams, image tokens first."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.add_q_proj, self.add_k_proj = (nn.Linear(width, width) for _ in range(2))
        self.add_v_proj = nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        self.to_add_out = nn.Linear(width, width)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        def split(x):  # heads are contiguous runs of channels
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        q = torch.cat([split(self.to_q(image)), split(self.add_q_proj(text))], dim=2)
        k = torch.cat([split(self.to_k(image)), split(self.add_k_proj(text))], dim=2)
        v = torch.cat([split(self.to_v(image)), split(self.add_v_proj(text))], dim=2)
        weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1)
        mixed = (weights @ v).transpose(1, 2).flatten(2)
        count = image.shape[1]
        return self.to_out[0](mixed[:, :count]), self.to_add_out(mixed[:, count:])


class Gelu(nn.Module):
    """A linear layer and the tanh form of GELU."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.proj = nn.Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """The MLP of a stream."""

    def __init__(self, width: int):
        super().__init__()
        down = nn.Linear(4 * width, width)
        self.net = nn.ModuleList([Gelu(width, 4 * width), nn.Identity(), down])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class Block(nn.Module):
    """One joint block."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        width = sizes.width
        self.norm1, self.norm1_context = Modulation(width, 6), Modulation(width, 6)
        self.attn = Attention(width, sizes.heads)
        self.ff, self.ff_context = FeedForward(width), FeedForward(width)

    def forward(self, image: Tensor, text: Tensor, temb: Tensor, trace: dict | None):
        mods = self.norm1(temb), self.norm1_context(temb)
        streams = [image, text]
        inputs = [
            layer_norm(x) * (1 + mod[1][:, None]) + mod[0][:, None]
            for x, mod in zip(streams, mods, strict=True)
        ]
        attended = self.attn(*inputs)
        if trace is not None:
            names = ("gate_msa", "shift_mlp", "scale_mlp", "gate_mlp")
            for name, x, mod in zip(("norm1", "norm1_context"), inputs, mods, strict=True):
                trace[f"{name}_x"] = x
                trace.update({f"{name}_{n}": m for n, m in zip(names, mod[2:], strict=True)})
            trace["attn_image"], trace["attn_text"] = attended
        out = []
        for x, a, mod, ff in zip(streams, attended, mods, (self.ff, self.ff_context), strict=True):
            _, _, gate, shift, scale, gate_mlp = (m[:, None] for m in mod)
            x = x + gate * a
            out.append(x + gate_mlp * ff(layer_norm(x) * (1 + scale) + shift))
        return out


class Adapter(nn.Module):
    """A semantic adapter: mean over tokens, then two layers with SiLU after each."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(sizes.width, sizes.adapter_hidden),
            nn.SiLU(),
            nn.Linear(sizes.adapter_hidden, sizes.adapter_out),
            nn.SiLU(),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc(tokens.mean(dim=1))


class TimeEmbedder(nn.Module):
    """The MLP on the features of a timestep."""

    def __init__(self, width: int):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(TIME_FEATURES, width), nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(features)))


class Transformer(nn.Module):
    """Returns (velocity, logits, hidden, text hidden, mid image, mid text) as the reference."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        width = sizes.width
        self.sizes = sizes
        self.float16_time_features = False
        self.pos_embed = PatchEmbed(sizes)
        self.time_text_embed = nn.ModuleDict({"timestep_embedder": TimeEmbedder(width)})
        self.context_embedder = nn.Linear(sizes.text_width, width)
        self.null_image_embd = nn.Parameter(torch.zeros(1, sizes.null_tokens, width))
        self.transformer_blocks = nn.ModuleList([Block(sizes) for _ in range(sizes.layers)])
        self.image_norm_out = Modulation(width, 2)
        self.image_proj_out = nn.Linear(width, sizes.patch**2 * sizes.channels)
        self.text_proj_out = nn.Linear(width, sizes.vocab)
        self.siglip_adapter_img, self.siglip_adapter_text = Adapter(sizes), Adapter(sizes)

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
        """`sincos` replaces the time features; `trace`, if given, is filled with intermediates."""
        kept = {} if trace is None else trace
        if latents is None:
            image = self.null_image_embd.expand(text.shape[0], -1, -1)
            target = self.sizes.null_tokens
        else:
            parts = [self.pos_embed(x) for x in (latents, *conditions)]
            kept.update({f"patch_tokens_{k}": x for k, x in enumerate(parts)})
            image, target = torch.cat(parts, dim=1), parts[0].shape[1]
        sincos = time_sincos(timestep) if sincos is None else sincos
        if self.float16_time_features:
            sincos = sincos.to(torch.float16).to(text.dtype)
        temb = self.time_text_embed["timestep_embedder"](sincos)
        words = self.context_embedder(text)
        kept.update(time_sincos=sincos, temb=temb, context=words)
        mid_image = mid_text = None
        for i, block in enumerate(self.transformer_blocks):
            inner = {} if i == 0 and trace is not None else None
            image, words = block(image, words, temb, inner)
            kept.update({f"block{i}_{name}": x for name, x in (inner or {}).items()})
            kept.update({f"block{i}_hidden": image, f"block{i}_text": words})
            if i + 1 == block_depth:
                mid_image = self.siglip_adapter_img(image[:, :target])
                mid_text = self.siglip_adapter_text(words)
        image = image[:, :target]
        text_hidden = layer_norm(words)
        logits = self.text_proj_out(text_hidden)
        if latents is None:
            return image, logits, image, text_hidden, mid_image, mid_text
        scale, shift = self.image_norm_out(temb)
        hidden = layer_norm(image) * (1 + scale[:, None]) + shift[:, None]
        velocity = self.unpatchify(self.image_proj_out(hidden), *latents.shape[2:])
        return velocity, logits, hidden, text_hidden, mid_image, mid_text

    def unpatchify(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """Tokens of (row in patch, column in patch, channel) to an image."""
        p = self.sizes.patch
        patches = tokens.view(tokens.shape[0], height // p, width // p, p, p, -1)
        return torch.einsum("nhwpqc->nchpwq", patches).reshape(len(tokens), -1, height, width)
