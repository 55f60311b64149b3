"""What a file or folder of PyTorch weights is, told by what is in it, never by its name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unialign_jax.bundle.contents import TRANSFORMER
from unialign_jax.bundle.shipped import is_torch_directory
from unialign_jax.convert import components, directory, mask_token
from unialign_jax.convert.parts import Part
from unialign_jax.convert.weight_files import INDEX_SUFFIX, SUFFIX, WeightFiles, open_weights
from unialign_jax.errors import UserError

# The layout in which Stability published SD3, before diffusers renamed its tensors.
_ORIGINAL = "model.diffusion_model."
_FULL = "transformer_blocks."


@dataclasses.dataclass(frozen=True)
class Found:
    """What was recognised.

    Attributes:
      kind: in a word or two, as `convert --json` says it.
      sentence: for people.
      parts: components by our names, checked.
      config: what a bundle of them says.
      tokenizer: a tokenizer.json, if there is one.
      vector: a mask-token embedding, if that is what it is.
    """

    kind: str
    sentence: str
    parts: Mapping[str, Part]
    config: dict[str, Any]
    tokenizer: Path | None = None
    vector: Path | None = None

    def notes(self, what: str) -> list[str]:
        """The names that were "renamed", "dropped", "adapted" or "initialised"."""
        return [name for part in self.parts.values() for name in part.notes.get(what, ())]


def recognise(path: Path, **options: Any) -> Found:
    """Tells what is there, and opens it; headers are read, arrays are not.

    Args:
      path: a folder or a file.
      **options: as `components.transformer_part`.

    Raises:
      UserError: nothing that can be converted, with the reason.
    """
    if not path.exists():
        raise UserError(f"{path}: is not there.")
    if path.is_dir() and is_torch_directory(path):
        return _whole(path, options)
    if path.is_file() and path.suffix in mask_token.PICKLES:
        return _vector(path)
    weights = open_weights(_weights_of(path))
    kind = _kind(weights)
    if kind == "vector":
        return _vector(weights.path)
    if kind == TRANSFORMER:
        return _transformer(weights, options)
    part = components.PARTS[kind](weights.path)
    part.check()
    sentence = f"a {part.what} alone"
    return Found(kind, sentence, {kind: part}, directory.config_of({kind: part}, directory.SHIFT))


def _weights_of(path: Path) -> Path:
    """The weights in a folder; of a folder of components, a hint which one to name."""
    if path.is_file():
        return path
    if any(path.glob(f"*{SUFFIX}")) or any(path.glob(f"*{INDEX_SUFFIX}")):
        return path
    pickles = sorted(file for file in path.iterdir() if file.suffix in mask_token.PICKLES)
    inside = sorted(folder.parent.name for folder in path.glob(f"*/*{SUFFIX}"))
    if inside:
        names = ", ".join(dict.fromkeys(inside))
        raise UserError(
            f"{path}: has no {directory.INDEX}, so it is no whole model; it holds {names}. Name "
            "one of them, or bring back the file."
        )
    if pickles:
        raise UserError(
            f"{path}: holds {pickles[0].name} and no {SUFFIX} file. A pickle could run code; only "
            "a mask-token embedding is read from one, when it is named itself. Save the weights as "
            "safetensors."
        )
    raise UserError(f"{path}: holds no weights (no {SUFFIX} file, no {directory.INDEX}).")


def _kind(weights: WeightFiles) -> str:
    names = list(weights)
    if any(name.startswith(_ORIGINAL) for name in names):
        raise UserError(
            f"{weights.path}: Stable Diffusion in Stability's own layout ({_ORIGINAL}...). Convert "
            "the folder `transformer` of the diffusers layout, as in "
            "stabilityai/stable-diffusion-3-medium-diffusers."
        )
    if any(name.startswith(_FULL) for name in names) or "pos_embed.proj.weight" in names:
        return TRANSFORMER
    if len(names) == 1 and len([n for n in weights.shapes[names[0]] if n > 1]) == 1:
        return "vector"
    file = weights.path.parent / components.CONFIG
    found = components.kind_of(components.read_json(file)) if file.is_file() else None
    if found is None or found == TRANSFORMER:
        shown = ", ".join(sorted(names)[:3])
        raise UserError(
            f"{weights.path}: no component that is known: {len(names)} tensors such as {shown}. "
            "Known are transformers of UniAlignment, D-DiT and SD3, T5 v1.1 encoders, SD3's "
            "autoencoder, Qwen2.5-VL, SigLIP and mask-token embeddings, each with its config.json."
        )
    return found


def _whole(path: Path, options: Mapping[str, Any]) -> Found:
    found = directory.open_directory(path, **options)
    try:
        tokenizer: Path | None = directory.tokenizer_file(path)
    except UserError:
        tokenizer = None
    kind, sentence = _transformer_kind(found.parts[TRANSFORMER])
    parts = ", ".join(f"{part.what}" for part in found.parts.values())
    return Found(
        f"{kind} directory",
        f"a whole model ({sentence}): {parts}, {'' if tokenizer else 'no '}tokenizer",
        found.parts,
        found.config,
        tokenizer,
    )


def _transformer(weights: WeightFiles, options: Mapping[str, Any]) -> Found:
    part = components.transformer_part(weights.path, **options)
    part.check()
    kind, sentence = _transformer_kind(part)
    training = (weights.path.parent / "resume_step.txt").is_file()
    if weights.path.name.startswith("consolidated.") or training:
        kind, sentence = "training checkpoint", f"a training checkpoint of {sentence}"
    parts = {TRANSFORMER: part}
    return Found(kind, sentence, parts, directory.config_of(parts, directory.SHIFT))


def _transformer_kind(part: Part) -> tuple[str, str]:
    if part.notes.get("renamed"):
        return "sd3", "the transformer of Stable Diffusion 3, as a start for training"
    if part.notes.get("initialised"):
        return "d-dit", "a D-DiT, which has no semantic adapters"
    return "unialignment", "UniAlignment"


def _vector(path: Path) -> Found:
    vector = mask_token.read_vector(path)
    sentence = f"a mask-token embedding of {vector.size} numbers, {vector.dtype}"
    return Found("mask token", sentence, {}, {}, vector=path)
