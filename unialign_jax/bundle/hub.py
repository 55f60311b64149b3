"""Models of the Hugging Face Hub: into its own cache, offline where that is asked for."""

from __future__ import annotations

import re
from pathlib import Path

from unialign_jax.errors import UserError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
# Weights as safetensors, bundles, and what describes them; never a pickle.
_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*/state/**", "*/_*", "*/orbax.checkpoint")


def is_name(model: str) -> bool:
    """Whether a string could be OWNER/NAME or OWNER/NAME@REVISION: not where OWNER is a folder."""
    return _NAME.fullmatch(model) is not None and not Path(model).parent.is_dir()


def fetch(name: str, revision: str | None = None) -> Path:
    """The folder of a model of the Hub, downloaded unless it is in the cache.

    Args:
      name: OWNER/NAME, or OWNER/NAME@REVISION.
      revision: branch, tag or commit; None is that of the name, or the newest of the main branch.

    Raises:
      UserError: not there, not to be reached, or offline (HF_HUB_OFFLINE) and not in the cache.
    """
    name, _, named = name.partition("@")
    revision = revision or named or None
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UserError(
            f"{name}: is no folder here; for models of the Hub, `pip install huggingface_hub`."
        ) from error
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(_FILES)))
    except Exception as error:  # of the library, of HTTP, of the cache: many types, one meaning
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        at = f" at revision {revision}" if revision else ""
        raise UserError(
            f"{name}: is no folder here, and cannot be had from the Hub{at} ({reason[:300]})."
        ) from error
