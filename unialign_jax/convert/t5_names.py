"""Names of a T5 v1.1 encoder's weights: transformers' `T5EncoderModel` to ours and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from unialign_jax.convert import tables
from unialign_jax.convert.tables import Entry, Tree, at_layer, linear, norm, same
from unialign_jax.errors import UserError
from unialign_jax.models import functional
from unialign_jax.models.t5 import T5Config, T5Encoder

WHAT = "text encoder"
# The reference keeps the first name; the second is the same tensor under its tied name.
TOKEN_TABLE = "shared.weight"
TIED_TOKEN_TABLE = "encoder.embed_tokens.weight"
_RELATIVE_BIAS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
_ATTENTION = {"query": "q", "key": "k", "value": "v", "out": "o"}
_MLP = {"gate": "wi_0", "up": "wi_1", "down": "wo"}


def table(config: T5Config) -> list[Entry]:
    """The entries of the encoder."""
    entries = [
        *same("token_embedding/embedding", TOKEN_TABLE),
        *same("relative_bias/embedding", _RELATIVE_BIAS),
        *norm("final_norm", "encoder.final_layer_norm", bias=False),
    ]
    for index in range(config.layers):
        attention, mlp = (f"encoder.block.{index}.layer.{part}" for part in (0, 1))
        block = [
            *norm("blocks/attention_norm", f"{attention}.layer_norm", bias=False),
            *norm("blocks/mlp_norm", f"{mlp}.layer_norm", bias=False),
        ]
        for ours, theirs in _ATTENTION.items():
            block += linear(f"blocks/{ours}", f"{attention}.SelfAttention.{theirs}", bias=False)
        for ours, theirs in _MLP.items():
            block += linear(f"blocks/{ours}", f"{mlp}.DenseReluDense.{theirs}", bias=False)
        entries += at_layer(block, index)
    return entries


def abstract_parameters(config: T5Config) -> Tree:
    """Shapes of our parameters."""
    return functional.build(lambda rngs: T5Encoder(config, rngs)).abstract


def t5_config_from_json(config: Mapping[str, Any], *, dtype: str = "float32") -> T5Config:
    """Reads the `config.json` of a T5 v1.1 encoder.

    Args:
      config: the parsed file.
      dtype: compute dtype of the result.

    Raises:
      UserError: not a T5 v1.1 (gated GELU) encoder, or a size is missing.
    """
    for key, expected, default in (
        ("model_type", "t5", "t5"),
        ("feed_forward_proj", "gated-gelu", "relu"),
        ("layer_norm_epsilon", 1e-6, 1e-6),
    ):
        found = config.get(key, default)
        if found != expected:
            raise UserError(
                f"text encoder's config.json: {key} is {found!r}, only {expected!r} is supported; "
                "give the encoder of a T5 v1.1 model (such as t5-v1_1-xxl)"
            )
    sizes = {"vocab_size", "d_model", "d_kv", "num_heads", "num_layers", "d_ff"}
    missing = sorted(sizes - set(config))
    if missing:
        raise UserError(
            f"text encoder's config.json lacks {', '.join(missing)}; "
            "give the file that was saved with the weights"
        )
    return T5Config(
        vocab_size=int(config["vocab_size"]),
        width=int(config["d_model"]),
        kv_dim=int(config["d_kv"]),
        heads=int(config["num_heads"]),
        layers=int(config["num_layers"]),
        mlp_width=int(config["d_ff"]),
        relative_buckets=int(config.get("relative_attention_num_buckets", 32)),
        relative_max_distance=int(config.get("relative_attention_max_distance", 128)),
        dtype=dtype,
    )


def t5_from_torch(state: Mapping[str, np.ndarray], config: T5Config) -> Tree:
    """Our parameter tree from a torch state dict, dtypes kept.

    Args:
      state: `T5EncoderModel` names to arrays. The token table may stand under either or both of its
        names.
      config: sizes that the arrays must have.

    Returns:
      A nested dict of NumPy arrays, as `T5Encoder` splits into.

    Raises:
      UserError: lists the missing, the unexpected and the mis-shaped names.
    """
    state = dict(state)
    tied = state.pop(TIED_TOKEN_TABLE, None)
    if tied is not None:
        first = state.setdefault(TOKEN_TABLE, tied)
        # NaN-safe equality of bits: a copy of the table that differs would be lost silently.
        if first.shape != tied.shape or first.tobytes() != tied.tobytes():
            raise UserError(
                f"text encoder's weights: {TOKEN_TABLE} and {TIED_TOKEN_TABLE} differ, but the "
                "encoder has one token table; delete the one that is not in use"
            )
    return tables.from_torch(state, table(config), abstract_parameters(config), WHAT)


def t5_to_torch(params: Tree, config: T5Config) -> dict[str, np.ndarray]:
    """A torch state dict from our parameter tree, dtypes kept.

    Args:
      params: nested dict of arrays as `t5_from_torch` returns.
      config: sizes of the encoder.

    Returns:
      `T5EncoderModel` names to contiguous arrays; the token table once, as `shared.weight`, the
      form in which `save_pretrained` writes it.

    Raises:
      UserError: lists the missing, the unexpected and the mis-shaped names.
    """
    return tables.to_torch(params, table(config), abstract_parameters(config), WHAT)
