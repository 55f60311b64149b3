"""Models by path or by name: the bundles that come with the package."""

from __future__ import annotations

import os
from pathlib import Path

from unialign_jax.bundle import hub
from unialign_jax.bundle.contents import DESCRIPTION, is_bundle

TORCH_INDEX = "model_index.json"
FOLDER = Path(__file__).resolve().parent.parent / "bundled"


def shipped_models() -> list[str]:
    """Names of the bundles that come with the package, sorted."""
    return sorted(path.name for path in FOLDER.glob("*") if is_bundle(path))


def find_model(model: str | os.PathLike[str], revision: str | None = None) -> Path:
    """The folder that a path or name means; it need not be there.

    A folder of the working directory comes before a shipped bundle of the same name if it holds a
    model: `scenes` may also be a data set. OWNER/NAME that is no folder here is one of the Hub.

    Args:
      model: path or name.
      revision: branch, tag or commit of a model on the Hub.

    Raises:
      UserError: a model of the Hub that cannot be had.
    """
    path = Path(model).expanduser()
    if holds_model(path):
        return path
    if os.fspath(model) in shipped_models():
        return FOLDER / path
    if hub.is_name(os.fspath(model)) and not path.exists():
        return hub.fetch(os.fspath(model), revision)
    return path


def is_torch_directory(path: Path) -> bool:
    """Whether a folder says that it holds a whole model in the published PyTorch layout."""
    return (path / TORCH_INDEX).is_file()


def holds_model(path: Path) -> bool:
    """Whether a folder looks like a bundle or a run directory."""
    return any((path / name).is_file() for name in (DESCRIPTION, "config.json", TORCH_INDEX))


def what_models_are() -> str:
    """For error messages: what can be given as a model."""
    names = ", ".join(shipped_models()) or "none here"
    return (
        "A model is a run directory that `unialign train --workdir` wrote (config.json, "
        "tokenizer.json and checkpoints/), a bundle that `unialign bundle` or `unialign convert` "
        f"wrote, a PyTorch directory ({TORCH_INDEX}), OWNER/NAME on the Hugging Face Hub, or the "
        f"name of a bundle that comes with the package ({names})."
    )
