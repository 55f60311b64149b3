"""The transformer's parameter names: the reference's and ours.

A block's q, k and v are one kernel here, (D, 3, heads, head dim), and all blocks are stacked on a
leading layer axis.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from unialign_jax.bundle.copying import contiguous
from unialign_jax.convert import tables
from unialign_jax.convert.tables import Entry, Tree, at_layer, linear, same
from unialign_jax.errors import UserError
from unialign_jax.models import functional, layers
from unialign_jax.models.mmdit import MMDiT
from unialign_jax.models.mmdit_config import MMDiTConfig

POSITION_BUFFER = "pos_embed.pos_embed"
WHAT = "transformer"


def _chunked(path: str, name: str, chunks: int) -> Iterator[Entry]:
    """The image head's modulation: (chunks D, D) there, (D, chunks, D) here."""
    yield Entry(
        f"{path}/kernel",
        (f"{name}.weight",),
        lambda a: a[0].T.reshape(a[0].shape[1], chunks, -1),
        lambda x: [x.reshape(x.shape[0], -1).T],
    )
    yield Entry(
        f"{path}/bias",
        (f"{name}.bias",),
        lambda a: a[0].reshape(chunks, -1),
        lambda x: [x.reshape(-1)],
    )


def _rows(path: str, name: str, chunks: int) -> Iterator[Entry]:
    """A block's modulation: its kernel (chunks D, D) in both."""
    yield from same(f"{path}/kernel", f"{name}.weight")
    yield Entry(
        f"{path}/bias",
        (f"{name}.bias",),
        lambda a: a[0].reshape(chunks, -1),
        lambda x: [x.reshape(-1)],
    )


def _qkv(path: str, names: tuple[str, str, str], heads: int) -> Iterator[Entry]:
    yield Entry(
        f"{path}/kernel",
        tuple(f"{n}.weight" for n in names),
        lambda a: np.stack([contiguous(w.T).reshape(w.shape[1], heads, -1) for w in a], axis=1),
        lambda x: [x[:, i].reshape(x.shape[0], -1).T for i in range(3)],
    )
    yield Entry(
        f"{path}/bias",
        tuple(f"{n}.bias" for n in names),
        lambda a: np.stack([b.reshape(heads, -1) for b in a]),
        lambda x: [x[i].reshape(-1) for i in range(3)],
    )


def _patch(patch: int) -> Iterator[Entry]:
    """A stride-P convolution there, a dense layer on (row, column, channel) patches here."""
    yield Entry(
        "patch/kernel",
        ("pos_embed.proj.weight",),
        lambda a: a[0].transpose(2, 3, 1, 0).reshape(-1, a[0].shape[0]),
        lambda x: [x.reshape(patch, patch, -1, x.shape[1]).transpose(3, 2, 0, 1)],
    )
    yield from same("patch/bias", "pos_embed.proj.bias")


def single_entries(config: MMDiTConfig) -> list[Entry]:
    """The entries outside the blocks, in the order of the forward pass."""
    return [
        *_patch(config.patch_size),
        *linear("time/up", "time_text_embed.timestep_embedder.linear_1"),
        *linear("time/down", "time_text_embed.timestep_embedder.linear_2"),
        *linear("context", "context_embedder"),
        Entry("null_image", ("null_image_embd",), lambda a: a[0][0], lambda x: [x[None]]),
        *_chunked("image_head/modulation", "image_norm_out.linear", 2),
        *linear("image_head/out", "image_proj_out"),
        *linear("text_head", "text_proj_out"),
        *linear("align_image/up", "siglip_adapter_img.fc.0"),
        *linear("align_image/down", "siglip_adapter_img.fc.2"),
        *linear("align_text/up", "siglip_adapter_text.fc.0"),
        *linear("align_text/down", "siglip_adapter_text.fc.2"),
    ]


def block_entries(config: MMDiTConfig, index: int) -> list[Entry]:
    """The entries of one block; stacked."""
    b = f"transformer_blocks.{index}"
    streams = {
        "image": ("norm1", ("to_q", "to_k", "to_v"), "to_out.0", "ff"),
        "text": (
            "norm1_context",
            ("add_q_proj", "add_k_proj", "add_v_proj"),
            "to_add_out",
            "ff_context",
        ),
    }
    entries: list[Entry] = []
    for stream, (norm, (q, k, v), out, mlp) in streams.items():
        ours = f"blocks/layers/{stream}"
        qkv = (f"{b}.attn.{q}", f"{b}.attn.{k}", f"{b}.attn.{v}")
        entries += [
            *_rows(f"blocks/modulation/{stream}", f"{b}.{norm}.linear", 6),
            *_qkv(f"{ours}/qkv", qkv, config.heads),
            *linear(f"{ours}/out", f"{b}.attn.{out}"),
            *linear(f"{ours}/up", f"{b}.{mlp}.net.0.proj"),
            *linear(f"{ours}/down", f"{b}.{mlp}.net.2"),
        ]
    return at_layer(entries, index)


def table(config: MMDiTConfig) -> list[Entry]:
    """The entries of the whole network."""
    per_block = (e for i in range(config.layers) for e in block_entries(config, i))
    return [*single_entries(config), *per_block]


def abstract_parameters(config: MMDiTConfig) -> Tree:
    """Shapes of our parameters, those left out that the reference has not."""
    whole = functional.build(lambda rngs: MMDiT(config, rngs)).abstract
    known: Tree = {}
    for path in {entry.path for entry in table(config)}:
        tables.set_path(known, path, tables.get_path(whole, path))
    return known


def reference_names(config: MMDiTConfig) -> list[str]:
    """Every parameter name of the reference for a config, without the positional buffer."""
    return tables.names_of(table(config))


def transformer_from_torch(state: Mapping[str, np.ndarray], config: MMDiTConfig) -> Tree:
    """Turns the reference's state dict into our parameter tree.

    Args:
      state: names and arrays; the positional buffer, when there, is checked against its formula.
      config: sizes; block kernels are stacked over `config.layers`.

    Returns:
      A nested dict of NumPy arrays with the dtypes of `state`.

    Raises:
      UserError: missing or unexpected names, a wrong shape, a positional table of another formula.
    """
    state = dict(state)
    buffer = state.pop(POSITION_BUFFER, None)
    tree = tables.from_torch(state, table(config), abstract_parameters(config), WHAT)
    if buffer is not None:
        check_position_buffer(buffer, config)
    return tree


def transformer_to_torch(params: Tree, config: MMDiTConfig) -> dict[str, np.ndarray]:
    """The inverse of `transformer_from_torch`; the positional buffer is made from its formula."""
    state = tables.to_torch(params, table(config), abstract_parameters(config), WHAT)
    return {POSITION_BUFFER: position_buffer(config), **state}


def position_buffer(config: MMDiTConfig) -> np.ndarray:
    """The reference's whole positional table, float32 [1, M * M, D]."""
    size = config.position_table_size
    by_column, by_row = layers.position_table(
        size,
        size,
        config.width,
        table_size=size,
        base_size=config.sample_size // config.patch_size,
    )
    half = (size, size, config.width // 2)
    table = np.concatenate(
        [np.broadcast_to(by_column[None], half), np.broadcast_to(by_row[:, None], half)], axis=-1
    )
    return table.reshape(1, size * size, config.width)


def check_position_buffer(
    buffer: np.ndarray, config: MMDiTConfig, tolerance: float = 1e-5
) -> float:
    """Returns the largest difference of a stored table from its formula.

    Raises:
      UserError: another shape, or a difference above `tolerance`.
    """
    shape = (1, config.position_table_size**2, config.width)
    if buffer.shape != shape:
        raise UserError(
            f"{POSITION_BUFFER} has shape {buffer.shape}, the config needs {shape}; "
            "check pos_embed_max_size and the width"
        )
    expected = position_buffer(config)
    error = float(np.max(np.abs(buffer.astype(np.float32) - expected)))
    if not error <= tolerance:
        raise UserError(
            f"{POSITION_BUFFER} differs from the sin-cos formula by {error:.3g}; "
            "check sample_size and patch_size in config.json"
        )
    return error


def config_from_json(
    config: Mapping[str, Any], extra: Mapping[str, Any], **switches: Any
) -> MMDiTConfig:
    """Reads the reference's config.json and the adapter sizes that it does not contain.

    Args:
      config: the reference's config.json.
      extra: `adapter_hidden_dim`, `adapter_out_dim`, `null_image_tokens`.
      **switches: further fields of `MMDiTConfig`.

    Raises:
      UserError: a missing key, or a variant of the architecture that this model is not.
    """
    if config.get("qk_norm") or config.get("dual_attention_layers"):
        raise UserError(
            "config.json asks for qk_norm or dual_attention_layers (Stable Diffusion 3.5); "
            "UniAlignment has neither, and building it without them would be wrong"
        )
    try:
        return MMDiTConfig(
            width=config["num_attention_heads"] * config["attention_head_dim"],
            heads=config["num_attention_heads"],
            layers=config["num_layers"],
            patch_size=config["patch_size"],
            channels=config["in_channels"],
            text_width=config["joint_attention_dim"],
            vocab_size=config["vocab_size"],
            sample_size=config["sample_size"],
            position_table_size=config["pos_embed_max_size"],
            null_image_tokens=extra["null_image_tokens"],
            adapter_hidden=extra["adapter_hidden_dim"],
            adapter_out=extra["adapter_out_dim"],
            **switches,
        )
    except KeyError as error:
        raise UserError(f"config.json or extra_config.json lacks the key {error}") from error
