"""Small convolutions before the patches: neighbouring pixels see each other across their borders.

A patch embedding is linear, and what it makes of an edge depends on where in the patch the edge
lies. Convolutions see an edge wherever it lies (arXiv 2106.14881); they help where patches are few
and large beside what is to be told apart in them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from unialign_jax.models import layers
from unialign_jax.parallel.tokens import whole_images

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    from unialign_jax.models.mmdit_config import MMDiTConfig

KERNEL = (3, 3)


class Stem(nnx.Module):
    """Two 3 x 3 convolutions with GELU whose patches become tokens.

    C channels become S and then 2 S at full resolution, with zeros beyond the border; P x P patches
    of them go through a linear layer.
    """

    def __init__(self, config: MMDiTConfig, rngs: nnx.Rngs):
        hidden = config.stem_channels
        self.patch_size = config.patch_size
        self.first = convolution(config.channels, hidden, config.dtype, rngs)
        self.second = convolution(hidden, 2 * hidden, config.dtype, rngs)
        self.out = layers.linear(
            config.patch_size**2 * 2 * hidden,
            config.width,
            (None, None),
            rngs=rngs,
            dtype=config.dtype,
            kernel_init=nnx.initializers.lecun_normal(),
        )

    def __call__(self, latents: Float[Array, "B H W C"]) -> Float[Array, "B N D"]:
        """Returns what is added to the patch embeddings, in their order."""
        x: Any = jax.nn.gelu(whole_images(self.first(whole_images(latents))))
        x = jax.nn.gelu(whole_images(self.second(x)))
        return self.out(layers.patchify(x, self.patch_size))


def convolution(
    features_in: int,
    features_out: int,
    dtype: str,
    rngs: nnx.Rngs,
    kernel_init: nnx.Initializer | None = None,
) -> nnx.Conv:
    """A 3 x 3 convolution with zeros beyond the border, whole on every device."""
    return nnx.Conv(
        features_in,
        features_out,
        KERNEL,
        dtype=jnp.dtype(dtype),
        kernel_init=kernel_init or nnx.initializers.he_normal(),
        rngs=rngs,
        kernel_metadata={"axes": (None,) * 4, "compute": dtype},
        bias_metadata={"axes": (None,), "compute": dtype},
    )
