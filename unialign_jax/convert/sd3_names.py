"""Stable Diffusion 3's transformer as a start: what is renamed, dropped, adapted and drawn anew.

The last block of SD3 ends its text stream: it has no text output, no text MLP, and only shift and
scale for the text's queries, keys and values. UniAlignment keeps both streams to the end
(uniAlignment.md 2.3.1). With gates of zero for what is new there, the image stream computes what it
did in SD3, but for the pooled text embedding that UniAlignment has not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from unialign_jax.convert import names, tables
from unialign_jax.convert.parts import Made, Readable, Tensors
from unialign_jax.errors import UserError
from unialign_jax.models import functional
from unialign_jax.models.mmdit import MMDiT
from unialign_jax.models.mmdit_config import MMDiTConfig

MARK = "norm_out.linear.weight"
RENAMED = {
    "norm_out.linear": "image_norm_out.linear",
    "proj_out": "image_proj_out",
}
DROPPED = "time_text_embed.text_embedder."
_OURS = ("image_norm_out.", "image_proj_out.")
_ADAPTERS = ("siglip_adapter_img.", "siglip_adapter_text.")
_HEADS = ("text_proj_out.", "null_image_embd", *_ADAPTERS)
_NEW_IN_LAST_BLOCK = ("attn.to_add_out.", "ff_context.")


def is_sd3(tensors: Mapping[str, Any]) -> bool:
    """Whether the names are those of a `SD3Transformer2DModel`."""
    return MARK in tensors and not any(name.startswith(_OURS) for name in tensors)


def refuse_variants(tensors: Tensors, path: Any) -> None:
    """Raises UserError for Stable Diffusion 3.5, whose blocks compute something else."""
    norms = [name for name in tensors if ".attn.norm_" in name]
    dual = [name for name in tensors if ".attn2." in name]
    found = []
    if norms:
        found.append(f"norms of queries and keys ({len(norms)} tensors such as {norms[0]})")
    if dual:
        found.append(f"a second attention in its blocks ({len(dual)} tensors such as {dual[0]})")
    if found:
        raise UserError(
            f"{path}: a transformer of Stable Diffusion 3.5, with {' and '.join(found)}. "
            "UniAlignment has neither, and without them the weights would mean something else. "
            "Start from stable-diffusion-3-medium."
        )


def as_ours(
    tensors: Tensors, config: MMDiTConfig, seed: int
) -> tuple[dict[str, Readable], dict[str, list[str]]]:
    """The tensors of an SD3 transformer under UniAlignment's names, with what it has not.

    Args:
      tensors: of the file.
      config: the network to start.
      seed: of what is drawn.

    Returns:
      Names to tensors, and lists of what was "renamed", "dropped", "adapted" and "initialised".
    """
    found: dict[str, Readable] = {}
    notes: dict[str, list[str]] = {
        "renamed": [],
        "dropped": [],
        "adapted": [],
        "initialised": [],
    }
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        if name.startswith(DROPPED):
            notes["dropped"].append(name)
        elif stem in RENAMED:
            found[f"{RENAMED[stem]}.{kind}"] = tensor
            notes["renamed"].append(f"{name} -> {RENAMED[stem]}.{kind}")
        else:
            found[name] = tensor
    modulation = f"transformer_blocks.{config.layers - 1}.norm1_context.linear"
    for kind in ("weight", "bias"):
        name = f"{modulation}.{kind}"
        short = found.get(name)
        if short is not None and tuple(short.shape[:1]) == (2 * config.width,):
            found[name] = _six_chunks(short)
            notes["adapted"].append(f"{name}: shift and scale of SD3, gates of zero")
    last = f"transformer_blocks.{config.layers - 1}."
    new = (*_HEADS, *(last + part for part in _NEW_IN_LAST_BLOCK))
    notes["initialised"] = _add_new(found, config, seed, new)
    return found, notes


def with_new_adapters(
    tensors: Tensors, config: MMDiTConfig, seed: int
) -> tuple[dict[str, Readable], dict[str, list[str]]]:
    """The tensors of a D-DiT, which has no semantic adapters, with those drawn anew."""
    found = dict(tensors)
    return found, {"initialised": _add_new(found, config, seed, _ADAPTERS)}


def _add_new(
    found: dict[str, Readable], config: MMDiTConfig, seed: int, new: tuple[str, ...]
) -> list[str]:
    """Draws the arrays whose names begin with one of `new`, where they are not there."""
    if "context_embedder.weight" not in found:
        return []
    dtype = found["context_embedder.weight"].dtype
    last, fresh = f"transformer_blocks.{config.layers - 1}.", _fresh(config, seed, dtype)
    added = []
    for name in names.reference_names(config):
        if name.startswith(new) and name not in found:
            found[name] = fresh[name.replace(last, "transformer_blocks.0.")]
            added.append(name)
    return added


def _six_chunks(short: Readable) -> Made:
    """SD3's (scale, shift) as (shift, scale, gate, shift, scale, gate), what is new zero."""
    width = short.shape[0] // 2

    def make() -> np.ndarray:
        scale, shift = np.split(short.read(), 2)
        zero = np.zeros_like(scale)
        return np.concatenate([shift, scale, zero, zero, zero, zero])

    return Made((6 * width, *short.shape[1:]), short.dtype, make)


def _fresh(config: MMDiTConfig, seed: int, dtype: np.dtype) -> dict[str, Made]:
    """The reference's names to initial values, of a network with one block: no other is drawn."""
    small = dataclasses.replace(config, layers=1)
    params: Any = None

    def drawn() -> Any:
        nonlocal params
        if params is None:
            network = functional.build(lambda rngs: MMDiT(small, rngs))
            params = jax.jit(network.init)(jax.random.key(seed))
        return params

    def make(entry: tables.Entry, position: int) -> np.ndarray:
        leaf = np.asarray(tables.get_path(drawn(), entry.path))
        theirs = entry.to_theirs(leaf if entry.layer is None else leaf[0])[position]
        return np.ascontiguousarray(theirs.astype(dtype))

    shapes = tables.their_shapes(names.table(small), names.abstract_parameters(small))
    return {
        name: Made(shapes[name], dtype, lambda e=entry, i=i: make(e, i))
        for entry in names.table(small)
        for i, name in enumerate(entry.names)
    }
