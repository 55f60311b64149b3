"""PyTorch weights to a model bundle, tensor by tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unialign_jax.bundle.contents import (
    AUTOENCODER,
    TEXT_ENCODER,
    TOKENIZER,
    TRANSFORMER,
    is_bundle,
)
from unialign_jax.bundle.leaves import leaves_of
from unialign_jax.bundle.read import Bundle
from unialign_jax.bundle.write import new_bundle
from unialign_jax.convert import directory, mask_token, names, t5_names
from unialign_jax.convert.parts import Part
from unialign_jax.convert.recognise import Found
from unialign_jax.data.tokenizer import TextTokenizer
from unialign_jax.errors import UserError
from unialign_jax.models.switches import weight_switches

MASK_TOKEN = "mask_token"
# Where a stored positional buffer is not the formula's to the last bit, it is kept.
BUFFERS = "buffers"


def to_jax(
    found: Found,
    destination: Path,
    *,
    vector: Path | None = None,
    components: Bundle | None = None,
    refer: bool = False,
    tokenizer: Path | None = None,
    overwrite: bool = False,
    source: str = "",
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Writes a bundle of what was recognised.

    Args:
      found: of `recognise`.
      destination: the bundle's folder.
      vector: a mask-token embedding to put into the text encoder's table.
      components: a bundle that has what `found` has not: text encoder, autoencoder, tokenizer.
      refer: names that bundle in place of copying from it.
      tokenizer: a tokenizer.json, in place of the one that was found.
      overwrite: replaces a bundle.
      source: what was converted, for the record.
      progress: called with the bytes of each array once it is read.

    Returns:
      The bundle's description.

    Raises:
      UserError: what is taken from `components` does not fit; the destination is taken or full.
    """
    parts, config = dict(found.parts), dict(found.config)
    others: dict[str, Bundle] = {}
    if components is not None:
        others = _taken(components, parts)
        config = {**components.description["config"], **config}
        at = components.path / TOKENIZER
        tokenizer = tokenizer or found.tokenizer or (at if at.is_file() else None)
    tokenizer = tokenizer or found.tokenizer
    if tokenizer is not None:
        TextTokenizer.from_file(tokenizer)  # or an error that names it
    if vector is not None:
        parts[TEXT_ENCODER] = with_mask_token(parts, vector, tokenizer)
    _check_fit(config)
    with new_bundle(destination, overwrite) as writer:
        for name, part in parts.items():
            writer.add(name, part.leaves(), progress)
        for name, other in others.items():
            writer.take(name, other, refer=refer)
        for name, tree in _extras(found).items():
            writer.add(name, leaves_of(tree), progress)
        network = parts[TRANSFORMER].config if TRANSFORMER in parts else None
        return writer.finish(
            config=config,
            tokenizer=tokenizer,
            switches={} if network is None else weight_switches(network),
            made_from={
                "converted": {"kind": found.kind, "from": source},
                "config": None,
                "changed": [],
                "seed": None,
                "step": None,
                "weights": "ema",
                "data": {},
            },
        )


def _extras(found: Found) -> dict[str, Any]:
    """What no network holds: a mask-token embedding alone, a buffer that is not its formula."""
    extras: dict[str, Any] = {}
    if found.vector is not None:
        extras[MASK_TOKEN] = {"embedding": mask_token.read_vector(found.vector)}
    part = found.parts.get(TRANSFORMER)
    if part is not None and part.buffer is not None:
        stored, formula = part.buffer.read(), names.position_buffer(part.config)
        if stored.dtype != formula.dtype or stored.tobytes() != formula.tobytes():
            extras[BUFFERS] = {"position": stored}
    return extras


def _taken(components: Bundle, parts: Mapping[str, Part]) -> dict[str, Bundle]:
    lacking = [n for n in (TRANSFORMER, TEXT_ENCODER, AUTOENCODER) if n not in parts]
    return {name: components for name in lacking if name in components}


def with_mask_token(parts: Mapping[str, Part], vector: Path, tokenizer: Path | None) -> Part:
    """The text encoder with the vector as the row of its mask token.

    Raises:
      UserError: no text encoder is converted, or the vector does not fit it.
    """
    part = parts.get(TEXT_ENCODER)
    if part is None:
        raise UserError(
            f"{vector}: a mask-token embedding goes into the text encoder that is converted with "
            "it, and there is none."
        )
    mask_id = mask_token.MASK_ID
    if tokenizer is not None:
        mask_id = TextTokenizer.from_file(tokenizer).mask_id
    table = part.tensors[t5_names.TOKEN_TABLE]
    changed = mask_token.with_vector(table, mask_token.read_vector(vector), mask_id, vector)
    return dataclasses.replace(part, tensors={**part.tensors, t5_names.TOKEN_TABLE: changed})


def _check_fit(config: Mapping[str, Any]) -> None:
    """Refuses components that cannot work together."""
    model = config.get("model")
    for section, key, ours in (
        ("text_encoder", "width", "text_width"),
        ("autoencoder", "latent_channels", "channels"),
    ):
        other = config.get(section)
        if model and other and other[key] != model[ours]:
            raise UserError(
                f"the {section} has {key} {other[key]}, the transformer needs {model[ours]}: they "
                "are parts of different models."
            )


def open_components(path: Path) -> Bundle:
    """The bundle that `--components` names.

    Raises:
      UserError: no bundle there.
    """
    if not is_bundle(path):
        raise UserError(
            f"{path}: is no bundle. Make one of the other components first: `unialign convert "
            f"to-jax` of a folder with {directory.INDEX}."
        )
    return Bundle(path)


def total_bytes(found: Found) -> int:
    """Bytes that `to_jax` reads, for a progress bar."""
    return sum(part.size for part in found.parts.values())
