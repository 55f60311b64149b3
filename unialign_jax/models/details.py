"""Small convolutions beside the image head: what is drawn at the resolution of pixels.

The image head is linear: a patch of it has no more edges than the tokens' channels can hold, and
what a condition image shows reaches the output through tokens alone. Here features of the tokens
meet the pixels of the target and of its conditions, and edges are made by convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from unialign_jax.models import layers
from unialign_jax.models.mmdit_config import MAX_CONDITIONS
from unialign_jax.models.stem import convolution
from unialign_jax.parallel.tokens import whole_images

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    from unialign_jax.models.mmdit_config import MMDiTConfig


class Details(nnx.Module):
    """Three 3 x 3 convolutions at full resolution, added to what the image head makes.

    S channels per pixel come from the tokens, by a linear layer, and are added to a convolution of
    the noisy image and its conditions side by side (absent ones are zeros); GELU, a convolution,
    GELU, and a convolution to the image's channels, at first zero.
    """

    def __init__(self, config: MMDiTConfig, rngs: nnx.Rngs):
        hidden = config.detail_channels
        self.patch_size = config.patch_size
        self.tokens = layers.linear(
            config.width,
            config.patch_size**2 * hidden,
            ("embed", None),
            rngs=rngs,
            dtype=config.dtype,
            kernel_init=nnx.initializers.lecun_normal(),
        )
        seen = (1 + MAX_CONDITIONS) * config.channels
        self.pixels = convolution(seen, hidden, config.dtype, rngs)
        self.middle = convolution(hidden, hidden, config.dtype, rngs)
        zeros = nnx.initializers.zeros
        self.out = convolution(hidden, config.channels, config.dtype, rngs, kernel_init=zeros)

    def __call__(
        self,
        tokens: Float[Array, "B N D"],
        latents: Float[Array, "B H W C"],
        conditions: Sequence[Float[Array, "B H W C"]],
    ) -> Float[Array, "B H W C"]:
        """Returns what is added to the image head's output, float32."""
        absent = [jnp.zeros_like(latents)] * (MAX_CONDITIONS - len(conditions))
        seen = jnp.concatenate([latents, *conditions, *absent], axis=-1)
        p = self.patch_size
        rows, columns = latents.shape[1] // p, latents.shape[2] // p
        drawn = layers.unpatchify(self.tokens(tokens), rows, columns, p)
        x: Any = jax.nn.gelu(whole_images(drawn + self.pixels(whole_images(seen))))
        x = jax.nn.gelu(whole_images(self.middle(x)))
        return whole_images(self.out(x)).astype(jnp.float32)
