"""Names of a T5 v1.1 encoder's weights: transformers' `T5EncoderModel` to ours and back.

One table says which name becomes which leaf. Torch keeps a linear layer as (out, in), we keep
(in, out), and we stack the layers on a leading axis; nothing else changes, so that a round trip
gives the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from unialign_jax.errors import UserError
from unialign_jax.models.t5 import T5Config

# The reference keeps the first name; the second is the same tensor under its tied name.
_TOKEN_TABLE = "shared.weight"
_TIED_TOKEN_TABLE = "encoder.embed_tokens.weight"

# (name in torch, path in our tree, transposed). `{i}` is the layer: those leaves are stacked.
_LAYER = "encoder.block.{i}.layer."
NAMES: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    (_TOKEN_TABLE, ("token_embedding", "embedding"), False),
    (
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        ("relative_bias", "embedding"),
        False,
    ),
    (_LAYER + "0.layer_norm.weight", ("blocks", "attention_norm", "scale"), False),
    (_LAYER + "0.SelfAttention.q.weight", ("blocks", "query", "kernel"), True),
    (_LAYER + "0.SelfAttention.k.weight", ("blocks", "key", "kernel"), True),
    (_LAYER + "0.SelfAttention.v.weight", ("blocks", "value", "kernel"), True),
    (_LAYER + "0.SelfAttention.o.weight", ("blocks", "out", "kernel"), True),
    (_LAYER + "1.layer_norm.weight", ("blocks", "mlp_norm", "scale"), False),
    (_LAYER + "1.DenseReluDense.wi_0.weight", ("blocks", "gate", "kernel"), True),
    (_LAYER + "1.DenseReluDense.wi_1.weight", ("blocks", "up", "kernel"), True),
    (_LAYER + "1.DenseReluDense.wo.weight", ("blocks", "down", "kernel"), True),
    ("encoder.final_layer_norm.weight", ("final_norm", "scale"), False),
)


def _leaf_shapes(config: T5Config) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Shape of each leaf in our layout, for one layer."""
    inner, width, mlp = config.heads * config.kv_dim, config.width, config.mlp_width
    into = (width, inner)
    return {
        ("token_embedding", "embedding"): (config.vocab_size, width),
        ("relative_bias", "embedding"): (config.relative_buckets, config.heads),
        ("blocks", "attention_norm", "scale"): (width,),
        ("blocks", "query", "kernel"): into,
        ("blocks", "key", "kernel"): into,
        ("blocks", "value", "kernel"): into,
        ("blocks", "out", "kernel"): (inner, width),
        ("blocks", "mlp_norm", "scale"): (width,),
        ("blocks", "gate", "kernel"): (width, mlp),
        ("blocks", "up", "kernel"): (width, mlp),
        ("blocks", "down", "kernel"): (mlp, width),
        ("final_norm", "scale"): (width,),
    }


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


def t5_from_torch(state: Mapping[str, np.ndarray], config: T5Config) -> dict[str, Any]:
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
    tied = state.pop(_TIED_TOKEN_TABLE, None)
    if tied is not None:
        table = state.setdefault(_TOKEN_TABLE, tied)
        # NaN-safe equality of bits: a copy of the table that differs would be lost silently.
        if table.shape != tied.shape or table.tobytes() != tied.tobytes():
            raise UserError(
                f"text encoder's weights: {_TOKEN_TABLE} and {_TIED_TOKEN_TABLE} differ, but the "
                "encoder has one token table; delete the one that is not in use"
            )
    _check(state, config)
    tree: dict[str, Any] = {}
    for name, path, transposed in NAMES:
        arrays = [state[each] for each in _layer_names(name, config)]
        arrays = [array.T if transposed else array for array in arrays]
        _put(tree, path, np.stack(arrays) if "{i}" in name else np.ascontiguousarray(arrays[0]))
    return tree


def t5_to_torch(params: Mapping[str, Any], config: T5Config) -> dict[str, np.ndarray]:
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
    tree = {path: np.asarray(leaf) for path, leaf in _flatten(params).items()}
    paths = {path for _, path, _ in NAMES}
    if set(tree) != paths:
        wrong = sorted("/".join(path) for path in set(tree) ^ paths)
        raise UserError(
            f"text encoder's parameters are not a T5 encoder's: {', '.join(wrong)} missing or "
            "unexpected; give the tree of unialign_jax.models.t5.T5Encoder"
        )
    state = {}
    for name, path, transposed in NAMES:
        names = _layer_names(name, config)
        arrays = tree[path] if "{i}" in name else tree[path][None]
        if len(arrays) != len(names):
            raise UserError(
                f"text encoder's parameter {'/'.join(path)} has {len(arrays)} layers, the config "
                f"{config.layers}; give the config that was saved with the parameters"
            )
        for each, array in zip(names, arrays, strict=True):
            state[each] = np.ascontiguousarray(array.T if transposed else array)
    _check(state, config)
    return state


def _layer_names(name: str, config: T5Config) -> list[str]:
    if "{i}" not in name:
        return [name]
    return [name.format(i=i) for i in range(config.layers)]


def _check(state: Mapping[str, np.ndarray], config: T5Config) -> None:
    """Raises UserError unless `state` has exactly the names and shapes of `config`."""
    shapes = _leaf_shapes(config)
    expected = {}
    for name, path, transposed in NAMES:
        shape = shapes[path][::-1] if transposed else shapes[path]
        expected.update(dict.fromkeys(_layer_names(name, config), shape))
    problems = [f"missing {name}" for name in expected if name not in state]
    problems += [f"unexpected {name}" for name in sorted(set(state) - set(expected))]
    problems += [
        f"{name} is {tuple(state[name].shape)}, expected {shape}"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    if problems:
        shown = "; ".join(problems[:12])
        more = f"; and {len(problems) - 12} more" if len(problems) > 12 else ""
        raise UserError(
            f"text encoder's weights do not fit its config: {shown}{more}. Give the weights and "
            "the config.json of the same T5 v1.1 encoder, without a decoder"
        )


def _put(tree: dict[str, Any], path: tuple[str, ...], leaf: np.ndarray) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = leaf


def _flatten(tree: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, (*prefix, key)))
        else:
            flat[(*prefix, key)] = value
    return flat
