"""Names of the weights of Qwen2.5-VL's vision tower: transformers' to ours and back.

The class there is `Qwen2_5_VisionTransformerPretrainedModel`; in a whole Qwen2.5-VL its names begin
with "visual." or "model.visual.". The patches are embedded by a three-dimensional convolution there
(out, channel, frame, row, column) and by a dense layer on flattened patches here; queries, keys and
values, stacked on one axis there, have an axis each here: (in, 3, heads, head channels).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from unialign_jax.convert import tables
from unialign_jax.convert.tables import Entry, Tree
from unialign_jax.errors import UserError
from unialign_jax.models import functional
from unialign_jax.models.teachers.qwen_layout import CHANNELS, QwenVisionConfig
from unialign_jax.models.teachers.qwen_vision import QwenVision

T = TypeVar("T")

WHAT = "Qwen2.5-VL vision tower"
PREFIXES = ("model.visual.", "visual.")
# A whole model's; a tower's (transformers 4 writes the former for both, 5 tells them apart).
_WHOLE, _TOWER = "qwen2_5_vl", "qwen2_5_vl_vision"
# Their key and our field. They are always written, whatever their value.
_SIZES = (
    ("depth", "depth"),
    ("hidden_size", "width"),
    ("num_heads", "heads"),
    ("intermediate_size", "mlp_width"),
    ("out_hidden_size", "out_width"),
    ("patch_size", "patch_size"),
    ("spatial_merge_size", "merge"),
    ("temporal_patch_size", "frames"),
    ("window_size", "window"),
)


def qwen_vision_config_from_json(
    config: Mapping[str, Any], *, dtype: str = "float32", param_dtype: str = "float32"
) -> QwenVisionConfig:
    """Reads the `config.json` of a Qwen2.5-VL or of its vision tower alone.

    Args:
      config: the parsed file, with or without `vision_config`.
      dtype: compute dtype of the result.
      param_dtype: dtype in which parameters are created.

    Raises:
      UserError: another architecture, a missing size, or sizes that do not fit each other.
    """
    if "vision_config" in config:
        _expect(config, "model_type", (_WHOLE,))
        config = config["vision_config"]
    # The tower inside the published files has no model_type of its own.
    if "model_type" in config:
        _expect(config, "model_type", (_WHOLE, _TOWER))
    _expect(config, "hidden_act", ("silu",))
    for key in ("in_channels", "in_chans"):
        if key in config:
            _expect(config, key, (CHANNELS,))
    rotary = config.get("rope_parameters") or {}
    for key, value in (("rope_type", "axial"), ("rope_theta", 10000.0)):
        if key in rotary:
            _expect(rotary, key, (value,))
    needed = [key for key, _ in _SIZES] + ["fullatt_block_indexes"]
    missing = [key for key in needed if key not in config]
    if missing:
        raise UserError(
            f"{WHAT}'s config.json lacks {', '.join(missing)}; "
            "give the file that was saved with the weights"
        )
    sizes = {field: int(config[key]) for key, field in _SIZES}
    full_blocks = tuple(int(i) for i in config["fullatt_block_indexes"])
    try:
        return QwenVisionConfig(
            **sizes, full_blocks=full_blocks, dtype=dtype, param_dtype=param_dtype
        )
    except ValueError as error:
        raise UserError(f"{WHAT}'s config.json: {error}") from error


def _expect(config: Mapping[str, Any], key: str, values: tuple[Any, ...]) -> None:
    found = config.get(key)
    if found not in values:
        raise UserError(
            f"{WHAT}'s config.json: {key} is {found!r}, only "
            f"{' or '.join(repr(value) for value in values)} is supported; give the config of a "
            "Qwen2.5-VL"
        )


def _patch_projection(config: QwenVisionConfig) -> Iterator[Entry]:
    kernel = (CHANNELS, config.frames, config.patch_size, config.patch_size)
    yield Entry(
        "patch/kernel",
        ("patch_embed.proj.weight",),
        lambda a: a[0].reshape(a[0].shape[0], -1).T,
        lambda x: [x.T.reshape(-1, *kernel)],
    )


def _queries_keys_values(path: str, name: str, heads: int) -> Iterator[Entry]:
    yield Entry(
        f"{path}/kernel",
        (f"{name}.weight",),
        lambda a: a[0].T.reshape(a[0].shape[1], 3, heads, -1),
        lambda x: [x.reshape(x.shape[0], -1).T],
    )
    yield Entry(
        f"{path}/bias",
        (f"{name}.bias",),
        lambda a: a[0].reshape(3, heads, -1),
        lambda x: [x.reshape(-1)],
    )


def table(config: QwenVisionConfig) -> list[Entry]:
    """Every array of the tower, in the order of the forward pass."""
    entries = [*_patch_projection(config)]
    for i in range(config.depth):
        name = f"blocks.{i}"
        block = [
            *tables.norm("blocks/attention_norm", f"{name}.norm1", bias=False),
            *_queries_keys_values("blocks/qkv", f"{name}.attn.qkv", config.heads),
            *tables.linear("blocks/out", f"{name}.attn.proj"),
            *tables.norm("blocks/mlp_norm", f"{name}.norm2", bias=False),
            *tables.linear("blocks/gate", f"{name}.mlp.gate_proj"),
            *tables.linear("blocks/up", f"{name}.mlp.up_proj"),
            *tables.linear("blocks/down", f"{name}.mlp.down_proj"),
        ]
        entries += tables.at_layer(block, i)
    return entries + [
        *tables.norm("merger/norm", "merger.ln_q", bias=False),
        *tables.linear("merger/up", "merger.mlp.0"),
        *tables.linear("merger/down", "merger.mlp.2"),
    ]


def build(config: QwenVisionConfig) -> functional.Functional:
    """The functional form of the tower; allocates nothing."""
    return functional.build(lambda rngs: QwenVision(config, rngs))


def strip_prefix(state: Mapping[str, T]) -> tuple[dict[str, T], str]:
    """The tower's own arrays under the names that they have in a tower alone.

    Args:
      state: of a tower, whose names have no prefix, or of a whole model, of which only the tower is
        taken.

    Returns:
      The tower's names and arrays, and the prefix that they had: "", or one of `PREFIXES`.
    """
    for prefix in PREFIXES:
        found = {
            name.removeprefix(prefix): array
            for name, array in state.items()
            if name.startswith(prefix)
        }
        if found:
            return found, prefix
    return dict(state), ""


def qwen_vision_from_torch(state: Mapping[str, np.ndarray], config: QwenVisionConfig) -> Tree:
    """Our parameter tree from a torch state dict, dtypes kept.

    Args:
      state: names to arrays, of the tower or of a whole Qwen2.5-VL.
      config: sizes that the arrays must have.

    Returns:
      A nested dict of NumPy arrays, as `QwenVision` splits into.

    Raises:
      UserError: lists the missing, the unexpected and the mis-shaped names.
    """
    return tables.from_torch(strip_prefix(state)[0], table(config), build(config).abstract, WHAT)


def qwen_vision_to_torch(params: Tree, config: QwenVisionConfig) -> dict[str, np.ndarray]:
    """A torch state dict from our parameter tree, dtypes kept.

    Returns:
      The tower's names, without a prefix, to contiguous arrays.

    Raises:
      UserError: the tree is not that of the tower, or has other shapes.
    """
    return tables.to_torch(params, table(config), build(config).abstract, WHAT)
