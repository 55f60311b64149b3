"""Folders in the published layout, which is diffusers'.

`model_index.json` names the components; `transformer/`, `vae/`, `text_encoder/`, `tokenizer/` and
`scheduler/` hold them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unialign_jax.bundle.contents import AUTOENCODER, TEXT_ENCODER, TRANSFORMER
from unialign_jax.bundle.shipped import TORCH_INDEX
from unialign_jax.convert.components import (
    QWEN,
    SIGLIP,
    autoencoder_part,
    read_json,
    text_encoder_part,
    transformer_part,
)
from unialign_jax.convert.parts import Part
from unialign_jax.errors import UserError

if TYPE_CHECKING:
    from unialign_jax.data.tokenizer import TextTokenizer

INDEX = TORCH_INDEX
# uniAlignment.md 2.2, 2.10: what it was trained at, and how its demonstrations sample.
TRAINED_PIXELS, TEXT_LENGTH = 512, 256
SHIFT = 3.0
# What the reference's demonstrations and benchmark steer away from.
NEGATIVE = (
    "low quality, blurry, low resolution, backlit, cartoon, animated, deformed, oversaturated, "
    "undersaturated, out of frame"
)


@dataclasses.dataclass(frozen=True)
class TorchDirectory:
    """A folder of the published layout.

    Attributes:
      path: the folder.
      parts: its components by our names.
      config: what a bundle of it would say: sizes, and how to sample.
    """

    path: Path
    parts: dict[str, Part]
    config: dict[str, Any]

    def tokenizer(self) -> TextTokenizer:
        """Its tokenizer."""
        from unialign_jax.data.tokenizer import TextTokenizer

        return TextTokenizer.from_file(tokenizer_file(self.path))


def open_directory(path: Path, **options: Any) -> TorchDirectory:
    """Opens a folder of the published layout; headers are read, arrays are not.

    Args:
      path: the folder.
      **options: as `transformer_part`.

    Raises:
      UserError: a component is missing, in the wrong folder, or does not fit its config.
    """
    index = read_json(path / INDEX)
    for name in (TRANSFORMER, TEXT_ENCODER, AUTOENCODER):
        if not (path / name).is_dir():
            listed = "lists it" if name in index else "does not list it either"
            raise UserError(f"{path}: has no folder {name}/ ({INDEX} {listed}).")
    parts = {
        TRANSFORMER: transformer_part(path / TRANSFORMER, **options),
        TEXT_ENCODER: text_encoder_part(path / TEXT_ENCODER),
        AUTOENCODER: autoencoder_part(path / AUTOENCODER),
    }
    for part in parts.values():
        part.check()
    return TorchDirectory(path, parts, config_of(parts, _shift_of(path)))


def _shift_of(path: Path) -> float:
    """The shift of the sampling noise levels that a folder's scheduler has."""
    file = path / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        return SHIFT
    shift = read_json(file).get("shift", 1.0)
    number = isinstance(shift, (int, float)) and not isinstance(shift, bool)
    if not number or not 0 < shift < float("inf"):
        raise UserError(f"{file}: shift is {shift!r}: a number above 0.")
    return float(shift)


def tokenizer_file(path: Path) -> Path:
    """The `tokenizer.json` of a folder.

    Raises:
      UserError: there is none, with the call that makes it from a SentencePiece model.
    """
    for folder in ("tokenizer", "tokenizer_3", "."):
        file = path / folder / "tokenizer.json"
        if file.is_file():
            return file
    raise UserError(
        f"{path}: has no tokenizer/tokenizer.json. Where there is a spiece.model, transformers "
        "makes it: T5TokenizerFast.from_pretrained(DIR).save_pretrained(DIR); or take that of "
        "google/t5-v1_1-xxl."
    )


def config_of(parts: Mapping[str, Part], shift: float) -> dict[str, Any]:
    """The config of a bundle that holds these components.

    Args:
      parts: by name.
      shift: of the sampling noise levels.
    """
    sections = {
        TRANSFORMER: "model",
        TEXT_ENCODER: "text_encoder",
        AUTOENCODER: "autoencoder",
        QWEN: QWEN,
        SIGLIP: SIGLIP,
    }
    config = {sections[name]: dataclasses.asdict(part.config) for name, part in parts.items()}
    if TRANSFORMER in parts:
        network = parts[TRANSFORMER].config
        factor = parts[AUTOENCODER].config.factor if AUTOENCODER in parts else 8
        largest = network.position_table_size * network.patch_size * factor
        config["data"] = {
            "image_size": min(TRAINED_PIXELS, largest),
            "text_length": TEXT_LENGTH,
        }
        config["sample"] = {
            "steps": 28,
            "guidance": 7.0,
            "shift": shift,
            "table": "double_shifted",
            "text_steps": 64,
            "text_temperature": 1.0,
            "negative": NEGATIVE,
        }
    return config
