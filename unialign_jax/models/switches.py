"""What each field of the network's config does to its parameters.

A field is a size (another value, other shapes), a switch that departs from the reference and
changes the weights or what they mean, or a setting of how the same weights are computed or first
drawn. Models with a switch set cannot be written in the reference's layout.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from unialign_jax.models.mmdit_config import MMDiTConfig

SIZES = (
    "width",
    "heads",
    "layers",
    "patch_size",
    "channels",
    "text_width",
    "vocab_size",
    "sample_size",
    "position_table_size",
    "null_image_tokens",
    "adapter_hidden",
    "adapter_out",
)
# With the value that is the reference's.
WEIGHT_SWITCHES: dict[str, Any] = {
    "stem_channels": 0,
    "detail_channels": 0,
    "text_positions": 0,
    "condition_segments": False,
    "qk_norm": False,
    "rotary_fastest": 0.0,
    "rotary_slowest": 1e-4,
    "prediction": "velocity",
}
SETTINGS = (
    *("positions_std", "rotary_bias", "initial_gates"),
    *("time_features_float16", "dtype", "remat", "unroll", "attention", "context_attention"),
    "branches",
)


def weight_switches(config: MMDiTConfig) -> dict[str, Any]:
    """The switches that change the weights and are not as in the reference, with their values."""
    values = dataclasses.asdict(config)
    return {name: values[name] for name, ours in WEIGHT_SWITCHES.items() if values[name] != ours}
