"""Scaled dot-product attention behind one function: splash, cuDNN or XLA, whole or over `context`.

`dispatch` chooses and is what models call; `xla`, `splash` and `cudnn` attend on one device;
`partition` runs them under a mesh; `context` spreads the tokens of a sample over devices.
"""

from unialign_jax.models.attention.context import CONTEXT_METHODS, ContextMethod
from unialign_jax.models.attention.dispatch import (
    BACKENDS,
    Backend,
    attention,
    default_backend,
    joint_attention,
    traced_platform,
)
from unialign_jax.models.attention.splash import SplashSettings
from unialign_jax.models.attention.xla import CHECKPOINT_NAME

__all__ = [
    "BACKENDS",
    "CHECKPOINT_NAME",
    "CONTEXT_METHODS",
    "Backend",
    "ContextMethod",
    "SplashSettings",
    "attention",
    "default_backend",
    "joint_attention",
    "traced_platform",
]
