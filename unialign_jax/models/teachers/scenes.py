"""A small dual encoder: images and texts into one space, where what belongs together is close.

Both towers are stacks of T5's block. The image tower reads patches with learned positions, the text
tower is a T5 encoder; each is projected linearly and averaged, so that the pooled features of an
image are the mean of its grid. Trained with a symmetric contrastive loss and a learned temperature,
as CLIP is (arXiv 2103.00020).
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from unialign_jax.models import functional, layers, pixels
from unialign_jax.models.checks import check_sizes
from unialign_jax.models.t5 import T5Block, T5Config, T5Encoder

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, UInt8

SMALLEST_PIXELS, LARGEST_PIXELS = 16, 64
# CLIP's start, and its bound against logits that grow without end.
FIRST_TEMPERATURE, LEAST_TEMPERATURE = 0.07, 0.01


@dataclasses.dataclass(frozen=True)
class DualEncoderConfig:
    """Sizes of both towers.

    Attributes:
      pixels: height and width of the images, 16 to 64.
      patch_size: height and width of a patch.
      vocab_size: rows of the token table.
      features: A, channels of what comes out.
      width: channels inside.
      heads: attention heads; `width` is a multiple.
      layers: blocks of each tower.
    """

    pixels: int
    patch_size: int
    vocab_size: int
    features: int = 64
    width: int = 96
    heads: int = 4
    layers: int = 1

    def __post_init__(self) -> None:
        check_sizes(self, "patch_size", "vocab_size", "features", "width", "heads", "layers")
        if not SMALLEST_PIXELS <= self.pixels <= LARGEST_PIXELS:
            raise ValueError(f"pixels is {self.pixels}: {SMALLEST_PIXELS} to {LARGEST_PIXELS}")
        if self.pixels % self.patch_size:
            raise ValueError(f"pixels {self.pixels} is not a multiple of {self.patch_size}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")

    @property
    def rows(self) -> int:
        """Rows, and columns, of the grid of patches."""
        return self.pixels // self.patch_size

    @property
    def tower(self) -> T5Config:
        """Sizes of a tower as those of a T5 encoder."""
        return T5Config(
            vocab_size=self.vocab_size,
            width=self.width,
            kv_dim=self.width // self.heads,
            heads=self.heads,
            layers=self.layers,
            mlp_width=2 * self.width,
        )


class ImageTower(nnx.Module):
    """Patches with learned positions through a stack of blocks; [B, N, width] comes out."""

    def __init__(self, config: DualEncoderConfig, rngs: nnx.Rngs):
        self.config = config
        patch, tower = config.patch_size, config.tower
        self.patch_embed = layers.linear(
            3 * patch * patch, config.width, (None, "embed"), rngs=rngs
        )
        self.positions = nnx.Param(
            0.1 * jax.random.normal(rngs.params(), (config.rows**2, config.width)),
            axes=(None, "embed"),
        )

        @nnx.split_rngs(splits=config.layers)
        @nnx.vmap(in_axes=0, out_axes=0)
        def stacked(rngs: nnx.Rngs) -> T5Block:
            return T5Block(tower, rngs)

        self.blocks = stacked(rngs)

    def __call__(self, images: Float[Array, "B P P 3"]) -> Float[Array, "B N D"]:
        x_BND = self.patch_embed(layers.patchify(images, self.config.patch_size))
        x_BND = x_BND + self.positions[...]
        count = x_BND.shape[1]
        bias_HNN = jnp.zeros((self.config.heads, count, count), jnp.float32)
        structure, stack = nnx.split(self.blocks)

        def layer(x_BND, state):
            return nnx.merge(structure, state)(x_BND, bias_HNN, None), None

        x_BND, _ = jax.lax.scan(layer, x_BND, stack)
        return layers.layer_norm(x_BND)


class DualEncoder(nnx.Module):
    """Images and texts to features of one width.

    Args:
      config: sizes.
      rngs: source of the initial parameters (stream "params").
    """

    def __init__(self, config: DualEncoderConfig, rngs: nnx.Rngs):
        self.config = config
        self.image = ImageTower(config, rngs)
        self.text = T5Encoder(config.tower, rngs)
        out = (config.width, config.features, ("embed", None))
        self.image_out = layers.linear(*out, rngs=rngs)
        self.text_out = layers.linear(*out, rngs=rngs)
        self.log_temperature = nnx.Param(jnp.float32(math.log(FIRST_TEMPERATURE)), axes=())

    @property
    def temperature(self) -> Float[Array, ""]:
        """Of the contrastive loss's logits."""
        return jnp.maximum(jnp.exp(self.log_temperature[...]), LEAST_TEMPERATURE)

    def image_grid(
        self, images: UInt8[Array, "B P P 3"] | Float[Array, "B P P 3"]
    ) -> Float[Array, "B R R A"]:
        """Features of every patch, in rows and columns.

        Args:
          images: uint8 pixels, or floats in [-1, 1].
        """
        tokens = self.image_out(self.image(pixels.encode(images)))
        rows = self.config.rows
        return tokens.reshape(tokens.shape[0], rows, rows, -1)

    def image_features(
        self, images: UInt8[Array, "B P P 3"] | Float[Array, "B P P 3"]
    ) -> Float[Array, "B A"]:
        """Features of whole images: the mean of `image_grid`."""
        return jnp.mean(self.image_grid(images), axis=(1, 2))

    def text_features(
        self, ids: Int[Array, "B L"], mask: Bool[Array, "B L"]
    ) -> Float[Array, "B A"]:
        """Features of texts: the mean over their own tokens, which alone are attended to.

        Args:
          ids: int32 token ids.
          mask: True for the tokens of the text; at least one in every row.
        """
        tokens = self.text_out(self.text(ids, mask))
        weight = mask[..., None].astype(tokens.dtype)
        return jnp.sum(tokens * weight, axis=1) / jnp.maximum(jnp.sum(weight, axis=1), 1.0)


def build(config: DualEncoderConfig) -> functional.Functional:
    """The functional form of the dual encoder; allocates nothing."""
    return functional.build(lambda rngs: DualEncoder(config, rngs))
