"""UniAlignment in JAX: one diffusion transformer that generates, edits and describes images.

`Pipeline` is the Python face (`Pipeline.from_pretrained("path").generate([...])`), `unialign` the
command line. Names are resolved on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unialign_jax.sampling.pipeline import Pipeline

__version__ = "0.1.0"

__all__ = ["Pipeline", "__version__"]

_LAZY = {"Pipeline": "unialign_jax.sampling.pipeline"}


def __getattr__(name: str) -> Any:
    """Imports the module behind a public name when the name is first asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
