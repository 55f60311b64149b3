"""Config files are Python files anywhere: how one is run, and how it reaches its neighbours."""

from __future__ import annotations

import importlib.util
import types
from pathlib import Path


def run_file(path: Path) -> types.ModuleType:
    """The module of a Python file; not entered in `sys.modules`."""
    spec = importlib.util.spec_from_file_location(f"unialign_jax_config_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def beside(file: str, name: str) -> types.ModuleType:
    """The module NAME.py in a config file's folder: what several configs share.

    Args:
        file: the config's own `__file__`.
        name: of the other file, without `.py`.

    Raises:
        FileNotFoundError: it is not there.
    """
    return run_file(Path(file).with_name(f"{name}.py"))
