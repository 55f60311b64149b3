"""Compiled programs kept on disk, so that a second start of the same job does not compile again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax

SWITCH = "UNIALIGN_COMPILATION_CACHE"


def enable_compilation_cache() -> Path | None:
    """Turns JAX's persistent cache on; call it before the first compilation.

    It lies in `unialign_jax/compiled` of the user's cache directory. `UNIALIGN_COMPILATION_CACHE`
    names another directory, or is `off`. A cache configured through JAX itself
    (`JAX_COMPILATION_CACHE_DIR`) is left as it is.

    Returns:
        The directory in use, or None.
    """
    choice = os.environ.get(SWITCH, "")
    settings: Any = jax.config
    if settings.jax_compilation_cache_dir:
        return Path(settings.jax_compilation_cache_dir)
    if choice.lower() in ("off", "0", "no", "none", "false"):
        return None
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = Path(choice).expanduser() if choice else home / "unialign_jax" / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(directory))
    return directory
