"""Starting a run from the weights of a bundle: the config key `init_from`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unialign_jax.bundle.contents import (
    TOKENIZER,
    TRANSFORMER,
    is_bundle,
    named_arrays,
    read_description,
)
from unialign_jax.bundle.read import Bundle
from unialign_jax.bundle.shipped import find_model
from unialign_jax.data.tokenizer import TextTokenizer
from unialign_jax.errors import UserError, bullets
from unialign_jax.models.functional import Params
from unialign_jax.models.mmdit_config import MMDiTConfig
from unialign_jax.models.switches import SIZES, WEIGHT_SWITCHES

# Settings of a text encoder that leave its weights what they are.
_FREE = ("dtype", "param_dtype", "train")
# What a config means that does not say.
_NETWORK = {field.name: field.default for field in dataclasses.fields(MMDiTConfig)}


def completed(
    config: Mapping[str, Any],
    recorded: Mapping[str, Any] | None = None,
    tokenizer: TextTokenizer | None = None,
) -> dict[str, Any]:
    """The config of a run with the autoencoder of the bundle that it starts from.

    Args:
        config: resolved.
        recorded: that of the run, if it has begun: the bundle is not needed any more.
        tokenizer: of the data.

    Raises:
        UserError: no bundle there, one of another tokenizer, or a network of other sizes or
            switches; names the keys.
    """
    if not config.get("init_from"):
        return dict(config)
    if recorded is not None and recorded.get("init_from") == config["init_from"]:
        kept = recorded.get("autoencoder")
        return {**config, **({"autoencoder": kept} if kept else {})}
    path = _bundle(config["init_from"])
    if tokenizer is not None and (path / TOKENIZER).is_file():
        _check_tokenizer(path, tokenizer)
    theirs = read_description(path)["config"]
    wrong = []
    for section, keys, unsaid in (
        ("model", (*SIZES, *WEIGHT_SWITCHES), _NETWORK),
        ("text_encoder", None, {}),
    ):
        if section not in theirs:
            continue
        ours = {**unsaid, **config.get(section, {})}
        there = {**unsaid, **theirs[section]}
        for key in keys or there:
            if key in there and key in ours and ours[key] != there[key] and key not in _FREE:
                wrong.append(f"--config.{section}.{key}={there[key]} (is {ours[key]})")
    if wrong:
        raise UserError(
            f"init_from: the network of {path} is not that of the config. What would make them "
            f"equal:\n{bullets(wrong)}"
        )
    autoencoder = theirs.get("autoencoder")
    return {**config, **({"autoencoder": autoencoder} if autoencoder else {})}


def load(path: str | Path, wanted: Mapping[str, Any]) -> dict[str, Params]:
    """The parts of a state that a bundle holds, in the shardings of the state.

    Args:
        path: the bundle.
        wanted: per part, the abstract parameters of the run with their shardings.

    Raises:
        UserError: damage, or arrays of other shapes; names them.
    """
    bundle = Bundle(_bundle(path))
    found = {}
    for name, tree in wanted.items():
        if name in bundle:
            _check_shapes(bundle, name, tree)
            found[name] = bundle.load(name, tree)
    if TRANSFORMER not in found:
        raise UserError(f"init_from: {bundle.path} holds no transformer to start from.")
    return found


def _check_tokenizer(path: Path, tokenizer: TextTokenizer) -> None:
    """Equal ids must mean equal words, or the weights know nothing of the data's texts."""
    if TextTokenizer.from_file(path / TOKENIZER).vocabulary() != tokenizer.vocabulary():
        raise UserError(
            f"init_from: {path} was made with another tokenizer than the data. Prepare the data "
            f"with `--tokenizer {path / TOKENIZER}`."
        )


def _check_shapes(bundle: Bundle, name: str, wanted: Any) -> None:
    have = {path: tuple(leaf.shape) for path, leaf in named_arrays(bundle.shapes(name))}
    want = {path: tuple(leaf.shape) for path, leaf in named_arrays(wanted)}
    wrong = [
        f"{name}/{path}: the run needs {want.get(path, 'none')}, the bundle has "
        f"{have.get(path, 'none')}"
        for path in sorted(have.keys() | want.keys())
        if have.get(path) != want.get(path)
    ]
    if wrong:
        raise UserError(
            f"init_from: the arrays of {bundle.path} do not fit the run:\n{bullets(wrong, 10)}"
        )


def _bundle(path: str | Path) -> Path:
    found = find_model(path)
    if not is_bundle(found):
        raise UserError(
            f"init_from: {path} is no bundle. `unialign bundle` makes one of a run, `unialign "
            "convert to-jax` of PyTorch weights."
        )
    return found
