"""Models by path or by name: the bundles that come with the package."""

from __future__ import annotations

import os
from pathlib import Path

from unialign_jax.bundle.contents import is_bundle

FOLDER = Path(__file__).resolve().parent.parent / "bundled"


def shipped_models() -> list[str]:
    """Names of the bundles that come with the package, sorted."""
    return sorted(path.name for path in FOLDER.glob("*") if is_bundle(path))


def find_model(model: str | os.PathLike[str]) -> Path:
    """The folder that a path or name means; it need not be there.

    A folder of the working directory comes before a shipped bundle of the same name if it holds a
    model: `scenes` may also be a data set.
    """
    path = Path(model).expanduser()
    if holds_model(path) or os.fspath(model) not in shipped_models():
        return path
    return FOLDER / path


def holds_model(path: Path) -> bool:
    """Whether a folder looks like a bundle or a run directory."""
    return is_bundle(path) or (path / "config.json").is_file()


def what_models_are() -> str:
    """For error messages: what can be given as a model."""
    names = ", ".join(shipped_models()) or "none here"
    return (
        "A model is a run directory that `unialign train --workdir` wrote (config.json, "
        "tokenizer.json and checkpoints/), a bundle that `unialign bundle` wrote, or the name of a "
        f"bundle that comes with the package ({names})."
    )
