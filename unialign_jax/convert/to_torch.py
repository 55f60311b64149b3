"""A model bundle to PyTorch: the reference's own layout and names, tensor by tensor."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unialign_jax.bundle.contents import AUTOENCODER, TEXT_ENCODER, TRANSFORMER
from unialign_jax.bundle.folder import new_folder
from unialign_jax.bundle.leaves import Leaf
from unialign_jax.config import to_dataclass
from unialign_jax.convert import autoencoder_names, layout, names, t5_names
from unialign_jax.convert.directory import SHIFT
from unialign_jax.convert.exported import Arrays, Export, export
from unialign_jax.convert.to_jax import BUFFERS
from unialign_jax.convert.weight_writer import LIMIT, Planned, write_weights
from unialign_jax.errors import UserError
from unialign_jax.models.autoencoder import AutoencoderConfig
from unialign_jax.models.mmdit_config import MMDiTConfig
from unialign_jax.models.switches import SETTINGS, weight_switches
from unialign_jax.models.t5 import T5Config

LAYOUTS = ("diffusers", "checkpoint")
CHECKPOINT = "consolidated.00-of-01"
README = "README.md"
# Tells a folder that was written here, which another call may replace.
MARKER, WHAT = "unialign_export.json", "export of unialign"
# Of the reference's stem for each component, as diffusers and transformers look for it.
_STEMS = {
    TRANSFORMER: "diffusion_pytorch_model",
    TEXT_ENCODER: "model",
    AUTOENCODER: "diffusion_pytorch_model",
}
# Of SD3, in latents; written where no transformer says another.
SAMPLE_SIZE = 128
_ADAPTERS = ("align_image/", "align_text/")


@dataclasses.dataclass(frozen=True)
class Source:
    """A model to be written.

    Attributes:
      name: of the model.
      config: as a bundle's.
      leaves: the arrays of each component.
      tokenizer: a tokenizer.json, if there is one.
    """

    name: str
    config: Mapping[str, Any]
    leaves: Mapping[str, Arrays]
    tokenizer: Path | None


@dataclasses.dataclass(frozen=True)
class Options:
    """How it is written.

    Attributes:
      layout: one of `LAYOUTS`; "checkpoint" is a bare training checkpoint of the transformer.
      dtype: "float32", "bfloat16" or "float16"; None keeps what is stored.
      limit: bytes of a weight file.
      adapters: whether the semantic adapters are written.
      overwrite: replaces a folder that was written before.
    """

    layout: str = "diffusers"
    dtype: str | None = None
    limit: int = LIMIT
    adapters: bool = True
    overwrite: bool = False


@dataclasses.dataclass(frozen=True)
class Written:
    """What was written: tensors, their bytes, parameters of the transformer, component names."""

    tensors: int
    bytes: int
    parameters: int
    components: tuple[str, ...]


def to_torch(
    source: Source,
    destination: Path,
    options: Options,
    progress: Callable[[int], None] = lambda done: None,
) -> Written:
    """Writes a folder.

    Args:
      source: the model.
      destination: the folder.
      options: how.
      progress: called with the bytes of each tensor once it is written.

    Raises:
      UserError: switches that change the weights, arrays that do not fit the config, a number that
        the dtype cannot hold; the destination is taken or full.
    """
    network, exports = prepare(source, options)
    final = destination.expanduser().resolve()
    with new_folder(final, options.overwrite, MARKER, WHAT) as folder:
        for name, made in exports.items():
            inside, stem = folder / name, _STEMS[name]
            if options.layout == "checkpoint":
                inside, stem = folder, CHECKPOINT
            inside.mkdir(exist_ok=True)
            write_weights(inside, stem, made.planned, _counted(made, progress), options.limit)
        _write_small_files(folder, source, options, network, exports)
    return Written(
        tensors=sum(len(made.planned) for made in exports.values()),
        bytes=sum(made.size for made in exports.values()),
        parameters=_parameters(exports[TRANSFORMER]) if TRANSFORMER in exports else 0,
        components=tuple(exports),
    )


def prepare(source: Source, options: Options) -> tuple[MMDiTConfig | None, dict[str, Export]]:
    """Checks everything that can be checked before a byte is written.

    Returns:
      The sizes of the transformer, None where a component is written without it, and the tensors of
      each component.
    """
    made: dict[str, Export] = {}
    network = None
    if TRANSFORMER in source.leaves:
        network = _network(source)
        made[TRANSFORMER] = _transformer(source, network, options)
    if options.layout == "checkpoint":
        if not made:
            raise UserError(f"{source.name}: has no transformer to write a checkpoint of.")
        return network, made
    if TEXT_ENCODER in source.leaves:
        encoder = _text_encoder(source)
        made[TEXT_ENCODER] = export(
            source.leaves[TEXT_ENCODER],
            t5_names.table(encoder),
            t5_names.abstract_parameters(encoder),
            t5_names.WHAT,
            options.dtype,
        )
    if AUTOENCODER in source.leaves:
        autoencoder = _autoencoder(source)
        made[AUTOENCODER] = export(
            source.leaves[AUTOENCODER],
            autoencoder_names.table(autoencoder),
            autoencoder_names.abstract_parameters(autoencoder),
            autoencoder_names.WHAT,
            options.dtype,
        )
    if not made:
        held = ", ".join(source.leaves) or "nothing"
        raise UserError(f"{source.name}: holds {held}; written are {', '.join(_STEMS)}.")
    return network, made


def _network(source: Source) -> MMDiTConfig:
    network = to_dataclass(MMDiTConfig, dict(source.config["model"]), where="model")
    switches = weight_switches(network)
    if switches:
        named = ", ".join(f"model.{name} = {value}" for name, value in switches.items())
        raise UserError(
            f"{source.name}: cannot be written for PyTorch: {named} change what the weights are, "
            "and the reference has no such switch. docs/switches.md lists them."
        )
    return network


def _text_encoder(source: Source) -> T5Config:
    config = dict(source.config["text_encoder"])
    return to_dataclass(T5Config, config, where="text_encoder", ignore=("train",))


def _transformer(source: Source, network: MMDiTConfig, options: Options) -> Export:
    table, abstract = names.table(network), names.abstract_parameters(network)
    arrays = source.leaves[TRANSFORMER]
    if not options.adapters:
        table = [entry for entry in table if not entry.path.startswith(_ADAPTERS)]

    def wanted(order: Any) -> list[Leaf]:
        kept = options.adapters
        return [leaf for leaf in arrays(order) if kept or not leaf.path.startswith(_ADAPTERS)]

    made = export(wanted, table, abstract, names.WHAT, options.dtype)
    if (
        network == MMDiTConfig(**{name: getattr(network, name) for name in SETTINGS})
        and not options.adapters
    ):
        count = _parameters(made)
        if count != layout.PARAMETERS_WITHOUT_ADAPTERS:
            raise UserError(
                f"{source.name}: {count:,} parameters without adapters, the reference has "
                f"{layout.PARAMETERS_WITHOUT_ADAPTERS:,}."
            )
    made.add(names.POSITION_BUFFER, _position_buffer(source, network, options.dtype))
    return made


def _position_buffer(source: Source, network: MMDiTConfig, dtype: str | None) -> np.ndarray:
    """The stored table where one was kept, else that of the formula."""
    if BUFFERS in source.leaves:
        (kept,) = source.leaves[BUFFERS]([])
        table = kept.read()
    else:
        table = names.position_buffer(network)
    return table if dtype is None else table.astype(np.float32).astype(np.dtype(dtype))


def _autoencoder(source: Source) -> AutoencoderConfig:
    return to_dataclass(AutoencoderConfig, dict(source.config["autoencoder"]), where="autoencoder")


def _parameters(made: Export) -> int:
    buffer = names.POSITION_BUFFER
    return sum(int(np.prod(t.shape)) for t in made.planned if t.name != buffer)


def _counted(made: Export, progress: Callable[[int], None]) -> Callable[[str], np.ndarray]:
    def read(name: str) -> np.ndarray:
        array = made.read(name)
        progress(array.nbytes)
        return array

    return read


def _write_small_files(
    folder: Path,
    source: Source,
    options: Options,
    network: MMDiTConfig | None,
    exports: Mapping[str, Export],
) -> None:
    whole = options.layout == "diffusers"
    text = layout.readme(source.name, whole, options.adapters, network, list(exports))
    (folder / README).write_text(text, "utf-8")
    _write_json(folder / MARKER, {"name": source.name, "components": list(exports)})
    if network is not None:
        inside = folder / TRANSFORMER if whole else folder
        _write_json(inside / "config.json", layout.transformer_json(network))
    if not whole:
        return
    components = [*exports, "scheduler"]
    if TEXT_ENCODER in exports:
        dtype = _main_dtype(exports[TEXT_ENCODER].planned)
        json_ = layout.text_encoder_json(_text_encoder(source), dtype)
        _write_json(folder / TEXT_ENCODER / "config.json", json_)
    if AUTOENCODER in exports:
        config = _autoencoder(source)
        latents = SAMPLE_SIZE if network is None else network.sample_size
        json_ = layout.autoencoder_json(config, latents * config.factor)
        _write_json(folder / AUTOENCODER / "config.json", json_)
    if network is None:
        return
    if source.tokenizer is not None:
        components.append("tokenizer")
        (folder / "tokenizer").mkdir()
        shutil.copyfile(source.tokenizer, folder / "tokenizer" / "tokenizer.json")
        length = source.config["data"]["text_length"]
        kind = layout.tokenizer_class(source.tokenizer)
        for name, content in layout.tokenizer_files(kind, length).items():
            _write_json(folder / "tokenizer" / name, content)
    (folder / "scheduler").mkdir()
    shift = float(source.config.get("sample", {}).get("shift", SHIFT))
    _write_json(folder / "scheduler" / "scheduler_config.json", layout.scheduler_json(shift))
    if set(_STEMS) <= set(exports):
        index = layout.model_index(components, layout.tokenizer_class(source.tokenizer))
        _write_json(folder / "model_index.json", index)


def _main_dtype(planned: Iterable[Planned]) -> str:
    sizes: dict[str, int] = {}
    for tensor in planned:
        sizes[tensor.dtype.name] = sizes.get(tensor.dtype.name, 0) + tensor.size
    return max(sizes, key=lambda name: sizes[name])


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
