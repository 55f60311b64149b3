"""Sizes and layers of the dual-stream transformer in plain PyTorch (torch_model.py).

A layer that is a `Linear` or `Convolution` of this file may compute in another dtype than that of
its parameters.
"""

from __future__ import annotations

import dataclasses
import math

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


def wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def layer_norm(x: Tensor) -> Tensor:
    """Over channels, without scale and shift, at least in float32."""
    return F.layer_norm(wide(x), x.shape[-1:], eps=1e-6)


class Linear(nn.Linear):
    """A linear layer that may compute in another dtype than that of its parameters."""

    compute: torch.dtype | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.compute is None:
            return super().forward(x)
        return F.linear(*(a.to(self.compute) for a in (x, self.weight, self.bias)))


class Convolution(nn.Conv2d):
    """The same for patches."""

    compute: torch.dtype | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.compute is None:
            return super().forward(x)
        bias = None if self.bias is None else self.bias.to(self.compute)
        return F.conv2d(x.to(self.compute), self.weight.to(self.compute), bias, self.stride)


class PatchEmbed(nn.Module):
    """Patches by a convolution, and the cropped table of positions."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.sizes = sizes
        self.pos_embed: Tensor
        self.proj = Convolution(sizes.channels, sizes.width, sizes.patch, stride=sizes.patch)
        self.register_buffer("pos_embed", torch.from_numpy(position_table(sizes)))

    def forward(self, image: Tensor) -> Tensor:
        grid = self.proj(image)
        (h, w), m = grid.shape[2:], self.sizes.table_size
        top, left = (m - h) // 2, (m - w) // 2
        table = self.pos_embed.view(m, m, -1)[top : top + h, left : left + w]
        return grid.flatten(2).transpose(1, 2) + table.flatten(0, 1)[None].to(grid.dtype)


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
        self.to_q, self.to_k, self.to_v = (Linear(width, width) for _ in range(3))
        self.add_q_proj, self.add_k_proj = (Linear(width, width) for _ in range(2))
        self.add_v_proj = Linear(width, width)
        self.to_out = nn.ModuleList([Linear(width, width)])
        self.to_add_out = Linear(width, width)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """What both streams attend to, before the output projections."""

        def split(x):  # heads are contiguous runs of channels
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        q = torch.cat([split(self.to_q(image)), split(self.add_q_proj(text))], dim=2)
        k = torch.cat([split(self.to_k(image)), split(self.add_k_proj(text))], dim=2)
        v = torch.cat([split(self.to_v(image)), split(self.add_v_proj(text))], dim=2)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        count = image.shape[1]
        return mixed[:, :count], mixed[:, count:]


class Gelu(nn.Module):
    """A linear layer and the tanh form of GELU."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.proj = Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """The MLP of a stream."""

    def __init__(self, width: int):
        super().__init__()
        down = Linear(4 * width, width)
        self.net = nn.ModuleList([Gelu(width, 4 * width), nn.Identity(), down])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


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
        return self.fc(wide(tokens).mean(dim=1))


class TimeEmbedder(nn.Module):
    """The MLP on the features of a timestep."""

    def __init__(self, width: int):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(TIME_FEATURES, width), nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(features)))
