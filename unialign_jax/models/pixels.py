"""Pixels as latents, for models without an autoencoder.

The latents of Stable Diffusion 3's autoencoder have about unit variance. Photographs in [-1, 1]
have a quarter of it, so that the same error of the velocity weighs twice as much in the picture; a
scale of 2 makes up for that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float, UInt8


def encode(image: Any, scale: float = 1.0) -> Any:
    """uint8 pixels -> float32 in [-scale, scale]; anything but uint8 is returned as it is."""
    if image.dtype != jnp.uint8:
        return image
    return (image.astype(jnp.float32) / 127.5 - 1.0) * scale


def decode(latents: Float[Array, "*B H W 3"], scale: float = 1.0) -> UInt8[Array, "*B H W 3"]:
    """Latents -> uint8 pixels; values beyond [-scale, scale] are clipped."""
    return jnp.round(jnp.clip((latents / scale + 1.0) * 127.5, 0.0, 255.0)).astype(jnp.uint8)
