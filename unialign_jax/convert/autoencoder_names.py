"""Names of the autoencoder's weights: diffusers' `AutoencoderKL` to ours and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from unialign_jax.convert import tables
from unialign_jax.convert.tables import Entry, Tree, convolution, linear, norm
from unialign_jax.errors import UserError
from unialign_jax.models import functional
from unialign_jax.models.autoencoder import Autoencoder, AutoencoderConfig

WHAT = "autoencoder"
# What the configs of other autoencoders say, with the value that ours needs.
_FIXED: tuple[tuple[str, Any, Any], ...] = (
    ("_class_name", "AutoencoderKL", "AutoencoderKL"),
    ("act_fn", "silu", "silu"),
    ("use_quant_conv", False, True),
    ("use_post_quant_conv", False, True),
    ("mid_block_add_attention", True, True),
    ("latents_mean", None, None),
    ("latents_std", None, None),
)
_KINDS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
_SIZES = ("block_out_channels", "layers_per_block", "latent_channels", "norm_num_groups")


def autoencoder_config_from_json(
    config: Mapping[str, Any], *, dtype: str = "float32"
) -> AutoencoderConfig:
    """Reads the `config.json` of an `AutoencoderKL`.

    Args:
      config: the parsed file.
      dtype: compute dtype of the result.

    Raises:
      UserError: an autoencoder of another kind, or a size is missing.
    """
    needed = [*_SIZES, "scaling_factor", "shift_factor", *_KINDS]
    missing = [key for key in needed if config.get(key) is None]
    if missing:
        raise UserError(
            f"autoencoder's config.json lacks {', '.join(missing)}; give the file that was saved "
            "with the weights of Stable Diffusion 3's autoencoder"
        )
    kinds = [(key, [kind] * len(config["block_out_channels"])) for key, kind in _KINDS.items()]
    found = [(key, config.get(key, default), needed) for key, needed, default in _FIXED]
    found += [(key, list(config[key]), kind) for key, kind in kinds]
    for key, value, needed in found:
        if value != needed:
            raise UserError(
                f"autoencoder's config.json: {key} is {value!r}, only {needed!r} is supported; "
                "give the autoencoder of Stable Diffusion 3"
            )
    return AutoencoderConfig(
        widths=tuple(config["block_out_channels"]),
        blocks=config["layers_per_block"],
        latent_channels=config["latent_channels"],
        image_channels=config.get("in_channels", 3),
        norm_groups=config["norm_num_groups"],
        scale=config["scaling_factor"],
        shift=config["shift_factor"],
        dtype=dtype,
    )


def table(config: AutoencoderConfig) -> list[Entry]:
    """The entries of the autoencoder."""
    levels, entries = len(config.widths), []
    for part in ("encoder", "decoder"):
        entries += [
            *convolution(f"{part}/conv_in", f"{part}.conv_in"),
            *_middle(f"{part}/middle", f"{part}.mid_block"),
            *norm(f"{part}/norm_out", f"{part}.conv_norm_out"),
            *convolution(f"{part}/conv_out", f"{part}.conv_out"),
        ]
    for part, widths, blocks, folder, resize in (
        ("encoder", config.widths, config.blocks, "down_blocks", "downsamplers"),
        ("decoder", config.widths[::-1], config.blocks + 1, "up_blocks", "upsamplers"),
    ):
        for i, width in enumerate(widths):
            ours, theirs = f"{part}/level_{i}", f"{part}.{folder}.{i}"
            for j in range(blocks):
                changes = j == 0 and widths[max(i - 1, 0)] != width
                entries += _residual(f"{ours}/block_{j}", f"{theirs}.resnets.{j}", changes)
            if i < levels - 1:
                entries += convolution(f"{ours}/resample", f"{theirs}.{resize}.0.conv")
    return entries


def _residual(path: str, name: str, changes_width: bool) -> list[Entry]:
    shortcut = convolution(f"{path}/shortcut", f"{name}.conv_shortcut") if changes_width else ()
    return [
        *norm(f"{path}/norm_1", f"{name}.norm1"),
        *convolution(f"{path}/conv_1", f"{name}.conv1"),
        *norm(f"{path}/norm_2", f"{name}.norm2"),
        *convolution(f"{path}/conv_2", f"{name}.conv2"),
        *shortcut,
    ]


def _middle(path: str, name: str) -> list[Entry]:
    attention = f"{name}.attentions.0"
    return [
        *_residual(f"{path}/block_1", f"{name}.resnets.0", False),
        *norm(f"{path}/norm", f"{attention}.group_norm"),
        *linear(f"{path}/query", f"{attention}.to_q"),
        *linear(f"{path}/key", f"{attention}.to_k"),
        *linear(f"{path}/value", f"{attention}.to_v"),
        *linear(f"{path}/out", f"{attention}.to_out.0"),
        *_residual(f"{path}/block_2", f"{name}.resnets.1", False),
    ]


def abstract_parameters(config: AutoencoderConfig) -> Tree:
    """Shapes of our parameters."""
    return functional.build(lambda rngs: Autoencoder(config, rngs)).abstract


def autoencoder_from_torch(state: Mapping[str, np.ndarray], config: AutoencoderConfig) -> Tree:
    """Our parameter tree from a torch state dict, dtypes kept.

    Raises:
      UserError: lists the missing, the unexpected and the mis-shaped names.
    """
    return tables.from_torch(state, table(config), abstract_parameters(config), WHAT)


def autoencoder_to_torch(params: Tree, config: AutoencoderConfig) -> dict[str, np.ndarray]:
    """The inverse of `autoencoder_from_torch`, dtypes kept."""
    return tables.to_torch(params, table(config), abstract_parameters(config), WHAT)
