"""A bundle or a run directory as the source of `unialign convert to-torch`."""

from __future__ import annotations

from pathlib import Path

from unialign_jax.bundle.contents import TOKENIZER, is_bundle
from unialign_jax.bundle.leaves import leaves_of
from unialign_jax.bundle.read import Bundle
from unialign_jax.bundle.shipped import find_model, is_torch_directory
from unialign_jax.bundle.weights import load_params
from unialign_jax.convert.exported import Arrays
from unialign_jax.convert.to_torch import Source
from unialign_jax.errors import UserError
from unialign_jax.sampling.loading import model_config


def open_source(
    path: Path, weights: str = "ema", *, step: int | None = None, name: str | None = None
) -> Source:
    """Opens a model to be written for PyTorch.

    Args:
      path: a bundle, whose arrays are read one at a time, or a run, which is read whole.
      weights: of a run: "ema" or "raw".
      step: of a run: a saved step; None is the newest.
      name: of the model; that of the bundle, or the run's folder, if None.

    Raises:
      UserError: neither, or other weights or steps than a bundle has.
    """
    path = find_model(path)
    if is_torch_directory(path):
        raise UserError(f"{path}: holds PyTorch weights already. Name a bundle or a run directory.")
    tokenizer = path / TOKENIZER if (path / TOKENIZER).is_file() else None
    if not is_bundle(path):
        config = model_config(path)
        params, _ = load_params(path, weights, step=step)
        leaves = {part: lambda order, tree=tree: leaves_of(tree) for part, tree in params.items()}
        return Source(name or path.resolve().name, config, leaves, tokenizer)
    bundle = Bundle(path)
    made_from = bundle.description["made_from"]
    if weights == "raw" and made_from["weights"] != "raw":
        raise UserError(f"{path}: this bundle has weights {made_from['weights']}, not raw.")
    if step not in (None, made_from["step"]):
        raise UserError(f"{path}: this bundle has step {made_from['step']}, not {step}.")

    def arrays(part: str) -> Arrays:
        return lambda order: bundle.leaves(part, order)

    found = {part: arrays(part) for part in bundle.components}
    return Source(
        name or bundle.description["name"], bundle.description["config"], found, tokenizer
    )
