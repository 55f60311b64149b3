"""Sizes of a transformer from the shapes of its weights, where no config.json is beside them."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from unialign_jax.convert.names import POSITION_BUFFER
from unialign_jax.convert.parts import Tensors
from unialign_jax.errors import UsageError, UserError

HEAD_CHANNELS = 64
_BLOCK = re.compile(r"transformer_blocks\.(\d+)\.")


def transformer_json(tensors: Tensors, path: Path, heads: int | None = None) -> dict[str, Any]:
    """What `config.json` would say.

    Args:
      tensors: of a transformer of UniAlignment or Stable Diffusion 3.
      path: for messages.
      heads: attention heads; no shape tells. None takes heads of 64 channels, as published.

    Raises:
      UserError: a tensor is missing that a size is read from, or the heads cannot be told.
    """

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        tensor = tensors.get(name)
        if tensor is None or len(tensor.shape) != dimensions or 0 in tensor.shape:
            found = "is missing" if tensor is None else f"has the shape {tuple(tensor.shape)}"
            raise UserError(f"{path}: {name} {found}; it tells the sizes of the transformer.")
        return tuple(tensor.shape)

    if heads is not None and heads < 1:
        raise UsageError(f"--heads is {heads}: at least 1.")
    width, channels, patch, _ = shape("pos_embed.proj.weight", 4)
    if heads is None:
        if width % HEAD_CHANNELS:
            raise UserError(
                f"{path}: how many heads its {width} channels make cannot be told; put the "
                "config.json beside it, or say --heads N."
            )
        heads = width // HEAD_CHANNELS
    layers = {int(m[1]) for name in tensors if (m := _BLOCK.match(name))}
    if layers != set(range(len(layers))):
        raise UserError(f"{path}: its blocks are not numbered from 0 on: {sorted(layers)[:30]}.")
    table = math.isqrt(shape(POSITION_BUFFER, 3)[1])
    return {
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "num_layers": len(layers),
        "patch_size": patch,
        "in_channels": channels,
        "joint_attention_dim": shape("context_embedder.weight", 2)[1],
        "vocab_size": shape("text_proj_out.weight", 2)[0]
        if "text_proj_out.weight" in tensors
        else None,
        "sample_size": _base_cells(tensors[POSITION_BUFFER].read(), table) * patch,
        "pos_embed_max_size": table,
    }


def _base_cells(buffer: np.ndarray, table: int) -> int:
    """S / P from the angle of the second column at frequency 1, which is S / (P M)."""
    quarter = buffer.shape[2] // 4
    first = buffer[0, min(1, table - 1)].astype(np.float64)
    angle = math.atan2(first[0], first[quarter]) % (2 * math.pi)
    return max(1, round(angle * table))
