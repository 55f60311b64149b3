"""Names of a SigLIP model's weights: transformers' `SiglipModel` to ours and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from unialign_jax.convert import tables
from unialign_jax.convert.tables import Entry, Tree, at_layer, convolution, linear, norm, same
from unialign_jax.errors import UserError
from unialign_jax.models.teachers.siglip import CHANNELS, NORM_EPSILON, build
from unialign_jax.models.teachers.siglip_config import SigLIPConfig, TextConfig, VisionConfig

WHAT = "SigLIP encoder"
# 0, 1, 2, ...: buffers that older versions of transformers saved with the weights.
BUFFERS = frozenset(("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"))

# Our name, the key in the file, and the default of transformers: a file leaves out what equals it.
_TOWER_SIZES = (
    ("width", "hidden_size", 768),
    ("layers", "num_hidden_layers", 12),
    ("heads", "num_attention_heads", 12),
    ("mlp_width", "intermediate_size", 3072),
)
_VISION_SIZES = (*_TOWER_SIZES, ("image_size", "image_size", 224), ("patch_size", "patch_size", 16))
_TEXT_SIZES = (
    *_TOWER_SIZES,
    ("vocab_size", "vocab_size", 32000),
    ("positions", "max_position_embeddings", 64),
)
# Keys with one value that this model has, which is also the default of transformers.
_TOWER_FIXED = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": NORM_EPSILON}
_VISION_FIXED = {
    "model_type": "siglip_vision_model",
    "num_channels": CHANNELS,
    "vision_use_head": True,
} | _TOWER_FIXED
_TEXT_FIXED = {"model_type": "siglip_text_model"} | _TOWER_FIXED


def siglip_config_from_json(config: Mapping[str, Any], *, dtype: str = "float32") -> SigLIPConfig:
    """Reads the `config.json` of a SigLIP model.

    What `vision_config` and `text_config` leave out has transformers' default: hidden_size 768,
    num_hidden_layers 12, num_attention_heads 12, intermediate_size 3072; image_size 224, patch_size
    16; vocab_size 32000, max_position_embeddings 64, projection_size as the text's hidden_size.

    Args:
      config: the parsed file.
      dtype: compute dtype of the result.

    Raises:
      UserError: not a SigLIP model, or one with parts that this implementation does not have.
    """
    _refuse_others(config, {"model_type": "siglip"}, "")
    vision, text = config.get("vision_config") or {}, config.get("text_config") or {}
    _refuse_others(vision, _VISION_FIXED, "vision_config.")
    _refuse_others(text, _TEXT_FIXED, "text_config.")
    vision_sizes = _sizes(vision, _VISION_SIZES, "vision_config.")
    text_sizes = _sizes(text, _TEXT_SIZES, "text_config.")
    projection = text.get("projection_size")
    projection = text_sizes["width"] if projection is None else projection
    if projection != vision_sizes["width"]:
        raise UserError(
            f"SigLIP's config.json: text_config.projection_size is {projection!r}, but images have "
            f"{vision_sizes['width']} features (vision_config.hidden_size); give the file that was "
            "saved with the weights"
        )
    try:
        towers = VisionConfig(**vision_sizes), TextConfig(**text_sizes)
    except ValueError as error:
        raise UserError(f"SigLIP's config.json: {error}") from error
    return SigLIPConfig(*towers, dtype=dtype)


def _refuse_others(config: Mapping[str, Any], fixed: Mapping[str, Any], where: str) -> None:
    for key, expected in fixed.items():
        found = config.get(key, expected)
        if found != expected:
            raise UserError(
                f"SigLIP's config.json: {where}{key} is {found!r}, only {expected!r} is supported; "
                "give the config of a SiglipModel (such as google/siglip-so400m-patch14-384)"
            )


def _sizes(config: Mapping[str, Any], sizes: Any, where: str) -> dict[str, int]:
    found = {}
    for name, key, default in sizes:
        value = config.get(key, default)
        if type(value) is not int or value < 1:
            raise UserError(
                f"SigLIP's config.json: {where}{key} is {value!r}, only a positive whole number is "
                "supported"
            )
        found[name] = value
    return found


def table(config: SigLIPConfig) -> list[Entry]:
    """Every array of the encoder, in the order of the forward pass."""
    return [
        *convolution("image/patch_embed", "vision_model.embeddings.patch_embedding"),
        *_embedding("image/positions", "vision_model.embeddings.position_embedding"),
        *_blocks("image/blocks", "vision_model.encoder.layers", config.vision.layers),
        *norm("image/final_norm", "vision_model.post_layernorm"),
        *_pooling_head("image/pool", "vision_model.head", config.vision.width),
        *_embedding("text/tokens", "text_model.embeddings.token_embedding"),
        *_embedding("text/positions", "text_model.embeddings.position_embedding"),
        *_blocks("text/blocks", "text_model.encoder.layers", config.text.layers),
        *norm("text/final_norm", "text_model.final_layer_norm"),
        *linear("text/head", "text_model.head"),
        *same("logit_scale", "logit_scale"),
        *same("logit_bias", "logit_bias"),
    ]


def _embedding(path: str, name: str) -> Iterator[Entry]:
    return same(f"{path}/embedding", f"{name}.weight")


def _blocks(path: str, name: str, layers: int) -> Iterator[Entry]:
    for i in range(layers):
        yield from at_layer(_block(path, f"{name}.{i}"), i)


def _block(path: str, name: str) -> Iterator[Entry]:
    yield from norm(f"{path}/attention_norm", f"{name}.layer_norm1")
    yield from linear(f"{path}/query", f"{name}.self_attn.q_proj")
    yield from linear(f"{path}/key", f"{name}.self_attn.k_proj")
    yield from linear(f"{path}/value", f"{name}.self_attn.v_proj")
    yield from linear(f"{path}/out", f"{name}.self_attn.out_proj")
    yield from norm(f"{path}/mlp_norm", f"{name}.layer_norm2")
    yield from _mlp(f"{path}/mlp", f"{name}.mlp")


def _mlp(path: str, name: str) -> Iterator[Entry]:
    yield from linear(f"{path}/up", f"{name}.fc1")
    yield from linear(f"{path}/down", f"{name}.fc2")


def _pooling_head(path: str, name: str, width: int) -> Iterator[Entry]:
    """The probe, torch's `nn.MultiheadAttention` and an MLP.

    `in_proj_weight` is (3 out, in): the matrices of queries, keys and values below each other.
    """
    yield Entry(
        f"{path}/probe", (f"{name}.probe",), lambda a: a[0][0, 0], lambda x: [x[None, None]]
    )
    yield Entry(
        f"{path}/qkv_kernel",
        (f"{name}.attention.in_proj_weight",),
        lambda a: a[0].reshape(3, width, width).transpose(2, 0, 1),
        lambda x: [x.transpose(1, 2, 0).reshape(3 * width, width)],
    )
    yield Entry(
        f"{path}/qkv_bias",
        (f"{name}.attention.in_proj_bias",),
        lambda a: a[0].reshape(3, width),
        lambda x: [x.reshape(3 * width)],
    )
    yield from linear(f"{path}/out", f"{name}.attention.out_proj")
    yield from norm(f"{path}/norm", f"{name}.layernorm")
    yield from _mlp(f"{path}/mlp", f"{name}.mlp")


def abstract_parameters(config: SigLIPConfig) -> Tree:
    """Shapes of our parameters."""
    return build(config).abstract


def siglip_from_torch(state: Mapping[str, np.ndarray], config: SigLIPConfig) -> Tree:
    """Our parameter tree from a torch state dict, dtypes kept.

    Args:
      state: `SiglipModel` names to arrays; the `position_ids` of older files are left out.
      config: sizes that the arrays must have.

    Returns:
      A nested dict of NumPy arrays, as `SigLIP` splits into.

    Raises:
      UserError: lists the missing, the unexpected and the mis-shaped names.
    """
    weights = {name: array for name, array in state.items() if name not in BUFFERS}
    return tables.from_torch(weights, table(config), abstract_parameters(config), WHAT)


def siglip_to_torch(params: Tree, config: SigLIPConfig) -> dict[str, np.ndarray]:
    """A torch state dict from our parameter tree, dtypes kept.

    Args:
      params: nested dict of arrays as `siglip_from_torch` returns.
      config: sizes of the encoder.

    Returns:
      `SiglipModel` names to contiguous arrays.

    Raises:
      UserError: the tree is not that of a SigLIP encoder of these sizes.
    """
    return tables.to_torch(params, table(config), abstract_parameters(config), WHAT)
