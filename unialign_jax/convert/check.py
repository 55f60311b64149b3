"""`--check`: the same inputs through PyTorch and JAX, on the weights that were converted."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unialign_jax.bundle.contents import AUTOENCODER, TEXT_ENCODER, TRANSFORMER
from unialign_jax.bundle.leaves import Leaf, unflatten
from unialign_jax.bundle.shipped import is_torch_directory
from unialign_jax.convert.components import read_json
from unialign_jax.convert.exported import Arrays
from unialign_jax.convert.parts import Part
from unialign_jax.convert.recognise import recognise
from unialign_jax.errors import UserError
from unialign_jax.models import functional
from unialign_jax.models.autoencoder import Autoencoder
from unialign_jax.models.mmdit import Branch, Heads, MMDiT
from unialign_jax.models.t5 import T5Encoder

TOKENS = 16


def compare(ours: Mapping[str, Arrays], theirs: Path) -> dict[str, float | None]:
    """Outputs of every component that both have, in float32 on random inputs.

    Args:
      ours: arrays per component, of a bundle or run.
      theirs: the PyTorch weights.

    Returns:
      Per output the largest difference, relative to the largest magnitude that PyTorch computes;
      None for a component that was rewritten and has no counterpart there.

    Raises:
      UserError: PyTorch, transformers or diffusers is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(
            "--check runs PyTorch: install it (`pip install unialign-jax[convert]`)."
        ) from error
    found: dict[str, float | None] = {}
    with torch.no_grad():
        for name, part in _parts(theirs).items():
            if name in ours and part.notes.get("dropped"):
                found[name] = None
            elif name in ours and name in _COMPARED:
                found |= _COMPARED[name](
                    part, lambda name=name, part=part: _tree(ours[name](_order(part)))
                )
    return found


def _parts(theirs: Path) -> Mapping[str, Part]:
    """The components of a folder, whole or not."""
    folders = [name for name in _COMPARED if (theirs / name).is_dir()]
    if is_torch_directory(theirs) or not folders:
        return recognise(theirs).parts
    return {name: part for f in folders for name, part in recognise(theirs / f).parts.items()}


def _order(part: Part) -> list[tuple[str, int | None]]:
    return [(leaf.path, leaf.layer) for leaf in part.leaves()]


def _tree(leaves: Iterable[Leaf]) -> Any:
    """Float32 parameters of stored arrays."""
    layers: dict[str, list[np.ndarray]] = {}
    stacked: dict[str, bool] = {}
    for leaf in leaves:
        layers.setdefault(leaf.path, []).append(np.asarray(leaf.read()).astype(np.float32))
        stacked[leaf.path] = leaf.layer is not None
    return unflatten(
        (tuple(path.split("/")), jnp.asarray(np.stack(found) if stacked[path] else found[0]))
        for path, found in layers.items()
    )


def _state(part: Part) -> dict[str, Any]:
    import torch

    return {
        name: torch.from_numpy(tensor.read().astype(np.float32))
        for name, tensor in part.tensors.items()
    }


def _difference(ours: Any, theirs: Any) -> float:
    reference = theirs.numpy()
    return float(np.max(np.abs(np.asarray(ours) - reference)) / np.max(np.abs(reference)))


def _transformer(part: Part, params: Callable[[], Any]) -> dict[str, float]:
    import torch

    from unialign_jax.convert.torch_layers import Sizes
    from unialign_jax.convert.torch_model import Transformer

    config, rng = part.config, np.random.default_rng(0)
    side = config.patch_size * min(4, config.position_table_size)
    latents = rng.standard_normal((1, side, side, config.channels)).astype(np.float32)
    text = rng.standard_normal((1, TOKENS, config.text_width)).astype(np.float32)
    with torch.device("meta"):
        model = Transformer(Sizes.of(config))
    model.pos_embed.pos_embed = torch.from_numpy(_position_buffer(config))
    model.load_state_dict(_state(part), assign=True, strict=False)
    outputs = model(
        torch.from_numpy(text), torch.tensor([500.0]), torch.from_numpy(latents).permute(0, 3, 1, 2)
    )
    velocity, logits = outputs[0].permute(0, 2, 3, 1), outputs[1]
    del model, outputs
    network = functional.build(lambda rngs: MMDiT(config, rngs))

    def run(params: Any) -> tuple[Any, Any]:
        inputs = jnp.asarray(text), jnp.array([500.0]), jnp.asarray(latents)
        branch = Branch(*inputs)
        out = network.bind(params)(branch, Heads(velocity=True, logits=True))
        return out.velocity, out.logits

    ours = jax.jit(run)(params())
    return {
        "transformer velocity": _difference(ours[0], velocity),
        "transformer logits": _difference(ours[1], logits),
    }


def _position_buffer(config: Any) -> np.ndarray:
    from unialign_jax.convert.names import position_buffer

    return np.array(position_buffer(config))


def _text_encoder(part: Part, params: Callable[[], Any]) -> dict[str, float]:
    import torch

    transformers = _library("transformers")
    ids = np.random.default_rng(0).integers(0, part.config.vocab_size, (1, TOKENS))
    model = transformers.T5EncoderModel(
        transformers.T5Config.from_pretrained(part.path.parent / "config.json")
    )
    model.load_state_dict({**_state(part), **_tied(part)}, assign=True, strict=False)
    theirs = model.eval()(torch.from_numpy(ids)).last_hidden_state
    del model
    network = functional.build(lambda rngs: T5Encoder(part.config, rngs))
    ours = jax.jit(lambda params: network.bind(params)(jnp.asarray(ids, jnp.int32)))(params())
    return {"text_encoder": _difference(ours, theirs)}


def _tied(part: Part) -> dict[str, Any]:
    from unialign_jax.convert.t5_names import TIED_TOKEN_TABLE, TOKEN_TABLE

    return {TIED_TOKEN_TABLE: _state(part)[TOKEN_TABLE]}


def _autoencoder(part: Part, params: Callable[[], Any]) -> dict[str, float]:
    import torch

    diffusers = _library("diffusers")
    config, rng = part.config, np.random.default_rng(0)
    image = rng.uniform(-1, 1, (1, 8 * config.factor, 8 * config.factor, 3)).astype(np.float32)
    model = diffusers.AutoencoderKL.from_config(read_json(part.path.parent / "config.json"))
    model.load_state_dict(_state(part))
    model.eval()
    mean = model.encode(torch.from_numpy(image).permute(0, 3, 1, 2)).latent_dist.mean
    back = model.decode(mean).sample.permute(0, 2, 3, 1)
    mean = mean.permute(0, 2, 3, 1)
    network = functional.build(lambda rngs: Autoencoder(config, rngs))

    def run(params: Any) -> tuple[Any, Any]:
        bound = network.bind(params)
        latents = (mean.numpy() - config.shift) * config.scale
        return bound.moments(image).mean, bound.decode(latents)

    ours = jax.jit(run)(params())
    return {"vae mean": _difference(ours[0], mean), "vae image": _difference(ours[1], back)}


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"--check runs {name}: install it (`pip install unialign-jax[convert]`)."
        ) from error


_COMPARED: dict[str, Callable[[Part, Callable[[], Any]], dict[str, float]]] = {
    TRANSFORMER: _transformer,
    TEXT_ENCODER: _text_encoder,
    AUTOENCODER: _autoencoder,
}
