"""The components that can be converted: each one's config, table of names and tensors.

A component is a weight file (or several with their index) and the config.json beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unialign_jax.bundle.contents import AUTOENCODER, TEXT_ENCODER, TRANSFORMER
from unialign_jax.convert import (
    autoencoder_names,
    guess,
    names,
    qwen_names,
    sd3_names,
    siglip_names,
    t5_names,
)
from unialign_jax.convert.parts import Part, Readable, Tensors
from unialign_jax.convert.weight_files import WeightFiles, open_weights, parse_json
from unialign_jax.errors import UsageError, UserError

CONFIG = "config.json"
QWEN, SIGLIP = "qwen_vision", "siglip"
# What the reference's sizes are where no file says them.
EXTRA_DEFAULTS = {"adapter_hidden_dim": 2048, "adapter_out_dim": 3584, "null_image_tokens": 8}
VOCABULARY = 32100
# Every layer gets names of its own before any is looked for.
DEEPEST = 1000
_DEPTHS = {"num_layers", "depth", "num_hidden_layers", "layers_per_block"}
# Sizes of the networks, by the names of the libraries: what is none of these is said by its key.
LARGEST = 10**7
_COUNTS = {
    *("num_attention_heads", "attention_head_dim", "patch_size", "in_channels", "vocab_size"),
    *("joint_attention_dim", "pos_embed_max_size", "d_model", "d_kv", "num_heads", "d_ff"),
    *("latent_channels", "norm_num_groups", "hidden_size", "intermediate_size", "image_size"),
    *("out_hidden_size", "spatial_merge_size", "temporal_patch_size", "window_size"),
    "sample_size",
}
_NUMBERS = {"scaling_factor", "shift_factor"}
_LISTS = {"block_out_channels", "fullatt_block_indexes", "down_block_types", "up_block_types"}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
      UserError: not there, or anything else.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    return parse_json(path, raw, "it")


def transformer_part(
    path: Path,
    *,
    heads: int | None = None,
    sizes: Mapping[str, int] | None = None,
    seed: int = 0,
) -> Part:
    """A transformer: UniAlignment's, D-DiT's (no adapters), or SD3's as a start.

    Args:
      path: a folder, a weight file or its index.
      heads: attention heads, where no config.json says them.
      sizes: of what the weights do not have, by the fields of `MMDiTConfig`.
      seed: of what has to be drawn.

    Raises:
      UserError: not a transformer that can be built right.
    """
    files = open_weights(path)
    tensors: dict[str, Readable] = dict(files.tensors)
    sd3_names.refuse_variants(tensors, files.path)
    if sizes and not sd3_names.is_sd3(tensors):
        raise UsageError(f"{', '.join(sizes)}: {files.path} says it; only SD3's weights do not.")
    json = _transformer_json(files, heads)
    config = _sized(
        files.path.parent / CONFIG,
        lambda: dataclasses.replace(
            names.config_from_json(json, _extra(files, tensors)), **(sizes or {})
        ),
        json,
    )
    notes: dict[str, list[str]] = {}
    if sd3_names.is_sd3(tensors):
        tensors, notes = sd3_names.as_ours(tensors, config, seed)
    elif not any(name.startswith("siglip_adapter") for name in tensors):
        tensors, notes = sd3_names.with_new_adapters(tensors, config, seed)
    buffer = tensors.pop(names.POSITION_BUFFER, None)
    part = Part(
        TRANSFORMER,
        names.WHAT,
        files.path,
        config,
        names.table(config),
        names.abstract_parameters(config),
        tensors,
        notes,
        buffer,
    )
    if buffer is not None:
        try:
            names.check_position_buffer(buffer.read(), config, _buffer_tolerance(buffer.dtype))
        except UserError as error:
            raise UserError(f"{files.path}: {error}") from error
    return part


def _buffer_tolerance(dtype: np.dtype) -> float:
    """Half a unit in the last place of numbers up to 1; float32 as in `check_position_buffer`."""
    return {"float32": 1e-5, "float16": 2.5e-4, "bfloat16": 2e-3}.get(dtype.name, 1e-5)


def _transformer_json(files: WeightFiles, heads: int | None) -> dict[str, Any]:
    file = files.path.parent / CONFIG
    json = read_json(file) if file.is_file() else {}
    if "num_attention_heads" not in json:
        json = guess.transformer_json(files.tensors, files.path, heads)
    return {**json, "vocab_size": json.get("vocab_size") or VOCABULARY}


def _extra(files: WeightFiles, tensors: Tensors) -> dict[str, int]:
    """The sizes that the reference's config.json does not have, from the weights themselves."""
    found = dict(EXTRA_DEFAULTS)
    for key, name, axis in (
        ("adapter_hidden_dim", "siglip_adapter_img.fc.0.weight", 0),
        ("adapter_out_dim", "siglip_adapter_img.fc.2.weight", 0),
        ("null_image_tokens", "null_image_embd", 1),
    ):
        if name in tensors and len(tensors[name].shape) > axis:
            found[key] = tensors[name].shape[axis]
    return found


def text_encoder_part(path: Path) -> Part:
    """A T5 v1.1 encoder."""
    files = open_weights(path)
    config = _config(files, TEXT_ENCODER, t5_names.t5_config_from_json)
    return Part(
        TEXT_ENCODER,
        t5_names.WHAT,
        files.path,
        config,
        t5_names.table(config),
        t5_names.abstract_parameters(config),
        _untied(files),
    )


def _untied(files: WeightFiles) -> dict[str, Readable]:
    """The tensors with the token table under one name."""
    tensors: dict[str, Readable] = dict(files.tensors)
    tied = tensors.pop(t5_names.TIED_TOKEN_TABLE, None)
    if tied is not None:
        first = tensors.setdefault(t5_names.TOKEN_TABLE, tied)
        if first is not tied and (
            first.shape != tied.shape or first.read().tobytes() != tied.read().tobytes()
        ):
            raise UserError(
                f"{files.path}: {t5_names.TOKEN_TABLE} and {t5_names.TIED_TOKEN_TABLE} differ, but "
                "the encoder has one token table; delete the one that is not in use."
            )
    return tensors


def autoencoder_part(path: Path) -> Part:
    """The autoencoder of Stable Diffusion 3."""
    files = open_weights(path)
    config = _config(files, AUTOENCODER, autoencoder_names.autoencoder_config_from_json)
    return Part(
        AUTOENCODER,
        autoencoder_names.WHAT,
        files.path,
        config,
        autoencoder_names.table(config),
        autoencoder_names.abstract_parameters(config),
        dict(files.tensors),
    )


def qwen_part(path: Path) -> Part:
    """The vision tower of Qwen2.5-VL, alone or inside the whole model."""
    files = open_weights(path)
    config = _config(files, QWEN, qwen_names.qwen_vision_config_from_json)
    tensors, _ = qwen_names.strip_prefix(files.tensors)
    return Part(
        QWEN,
        qwen_names.WHAT,
        files.path,
        config,
        qwen_names.table(config),
        qwen_names.build(config).abstract,
        tensors,
    )


def siglip_part(path: Path) -> Part:
    """The image and text towers of SigLIP."""
    files = open_weights(path)
    config = _config(files, SIGLIP, siglip_names.siglip_config_from_json)
    tensors = {n: t for n, t in files.tensors.items() if n not in siglip_names.BUFFERS}
    return Part(
        SIGLIP,
        siglip_names.WHAT,
        files.path,
        config,
        siglip_names.table(config),
        siglip_names.abstract_parameters(config),
        tensors,
    )


PARTS: dict[str, Callable[[Path], Part]] = {
    TEXT_ENCODER: text_encoder_part,
    AUTOENCODER: autoencoder_part,
    QWEN: qwen_part,
    SIGLIP: siglip_part,
}


def kind_of(json: Mapping[str, Any]) -> str | None:
    """The component that a config.json describes; None for something else."""
    kind, made = str(json.get("model_type", "")), str(json.get("_class_name", ""))
    if "num_attention_heads" in json and "joint_attention_dim" in json:
        return TRANSFORMER
    if made == "AutoencoderKL" or "latent_channels" in json:
        return AUTOENCODER
    for start, component in (("t5", TEXT_ENCODER), ("qwen2_5_vl", QWEN), ("siglip", SIGLIP)):
        if kind.startswith(start):
            return component
    return None


def _config(files: WeightFiles, component: str, read: Callable[[Any], Any]) -> Any:
    """The sizes of a component by the config.json beside its weights."""
    file = files.path.parent / CONFIG
    if not file.is_file():
        raise UserError(f"{file}: is not there, but tells the sizes of the {component}.")
    json = read_json(file)
    kind = kind_of(json)
    if kind not in (component, None):
        raise UserError(f"{file}: describes a {kind}; in this folder a {component} is expected.")
    return _sized(file, lambda: read(json), json)


def _sized(file: Path, make: Callable[[], Any], json: Mapping[str, Any]) -> Any:
    """A config from a config.json; whatever is wrong with its values names the file."""
    for where in (json, *(v for v in json.values() if isinstance(v, dict))):
        for key, value in where.items():
            whole = type(value) is int
            if key in _DEPTHS and (not whole or not 0 < value <= DEEPEST):
                raise UserError(f"{file}: {key} is {value!r}: a number from 1 to {DEEPEST}.")
            if key in _COUNTS and (not whole or not 0 < value <= LARGEST):
                raise UserError(f"{file}: {key} is {value!r}: a number from 1 to {LARGEST}.")
            if key in _NUMBERS and type(value) not in (int, float):
                raise UserError(f"{file}: {key} is {value!r}: a number.")
            if key in _LISTS and not isinstance(value, list):
                raise UserError(f"{file}: {key} is {value!r}: a list.")
    try:
        return make()
    except (UserError, ValueError, TypeError) as error:
        raise UserError(f"{file}: {error}") from error
