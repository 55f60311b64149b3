"""The KL autoencoder of Stable Diffusion 3: images to latents of an eighth of their size, and back.

A convolutional encoder and decoder (Rombach et al. 2021, arXiv 2112.10752) with 16 latent channels
and no convolutions around the latents. The encoder gives mean and log-variance of a normal
distribution; what the transformer sees is its sample, shifted and scaled to about unit variance.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx

from unialign_jax.models.attention import attention
from unialign_jax.models.checks import check_dtype, check_sizes
from unialign_jax.models.layers import linear

if TYPE_CHECKING:
    from jaxtyping import Array, Float

_NORM_EPSILON = 1e-6
_LOGVAR_BOUNDS = (-30.0, 20.0)


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of the autoencoder; the defaults are those of Stable Diffusion 3.

    Attributes:
      widths: channels of each level, from full size down; each level but the last halves the size.
      blocks: residual blocks per level of the encoder; the decoder has one more.
      latent_channels: C of the latents.
      image_channels: of the images.
      norm_groups: groups of the group norms; divides every width.
      scale, shift: latents of the transformer are (sample - shift) * scale.
      dtype: compute dtype. Norms are float32 whatever it is.
      param_dtype: dtype in which the parameters are created.
    """

    widths: tuple[int, ...] = (128, 256, 512, 512)
    blocks: int = 2
    latent_channels: int = 16
    image_channels: int = 3
    norm_groups: int = 32
    scale: float = 1.5305
    shift: float = 0.0609
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self) -> None:
        check_dtype("dtype", self.dtype)
        check_dtype("param_dtype", self.param_dtype)
        check_sizes(self, "blocks", "latent_channels", "image_channels", "norm_groups")
        if not self.widths or any(width < 1 or width % self.norm_groups for width in self.widths):
            raise ValueError(
                f"widths are {self.widths}: at least one, each a multiple of norm_groups "
                f"{self.norm_groups}"
            )
        if not self.scale > 0:
            raise ValueError(f"scale is {self.scale}: above 0")

    @property
    def factor(self) -> int:
        """Pixels per latent, along each side."""
        return 2 ** (len(self.widths) - 1)


@flax.struct.dataclass
class Moments:
    """A normal distribution over latents: `mean` and `logvar`, each [B, h, w, C], float32."""

    mean: Any
    logvar: Any

    def sample(self, noise: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        """Mean + exp(logvar / 2) noise."""
        return self.mean + jnp.exp(0.5 * self.logvar) * noise


class GroupNorm(nnx.Module):
    """Group normalisation over the last axis of [B, H, W, C], in float32."""

    def __init__(self, channels: int, config: AutoencoderConfig):
        axes, dtype = ("embed",), jnp.dtype(config.param_dtype)
        self.groups = config.norm_groups
        self.scale = nnx.Param(jnp.ones(channels, dtype), axes=axes)
        self.bias = nnx.Param(jnp.zeros(channels, dtype), axes=axes)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        shape, x = x.shape, x.astype(jnp.float32)
        grouped = x.reshape(shape[0], -1, self.groups, shape[-1] // self.groups)
        mean = jnp.mean(grouped, axis=(1, 3), keepdims=True)
        variance = jnp.mean(jnp.square(grouped - mean), axis=(1, 3), keepdims=True)
        normed = ((grouped - mean) * jax.lax.rsqrt(variance + _NORM_EPSILON)).reshape(shape)
        return normed * self.scale + self.bias


def _convolution(
    channels: tuple[int, int],
    config: AutoencoderConfig,
    rngs: nnx.Rngs,
    *,
    size: int = 3,
    stride: int = 1,
) -> nnx.Conv:
    """A convolution; padded to keep the size, or with a stride for an input that is padded."""
    return nnx.Conv(
        *channels,
        kernel_size=(size, size),
        strides=stride,
        padding="VALID" if stride > 1 else "SAME",
        dtype=jnp.dtype(config.dtype),
        param_dtype=jnp.dtype(config.param_dtype),
        kernel_metadata={"axes": (None, None, "embed", "mlp")},
        bias_metadata={"axes": ("mlp",)},
        rngs=rngs,
    )


class ResidualBlock(nnx.Module):
    """Twice norm, SiLU and convolution, added to the input (through 1 x 1 where widths differ)."""

    def __init__(self, channels: tuple[int, int], config: AutoencoderConfig, rngs: nnx.Rngs):
        before, after = channels
        self.norm_1 = GroupNorm(before, config)
        self.conv_1 = _convolution((before, after), config, rngs)
        self.norm_2 = GroupNorm(after, config)
        self.conv_2 = _convolution((after, after), config, rngs)
        self.changes_width = before != after
        if self.changes_width:
            self.shortcut = _convolution((before, after), config, rngs, size=1)

    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B H W O"]:
        h = self.conv_1(jax.nn.silu(self.norm_1(x)))
        h = self.conv_2(jax.nn.silu(self.norm_2(h)))
        return (self.shortcut(x) if self.changes_width else x) + h


class Middle(nnx.Module):
    """Residual block, attention over all places with one head as wide as the channels, and again.

    The attention's input is normed by group; its output is added to what came in.
    """

    def __init__(self, channels: int, config: AutoencoderConfig, rngs: nnx.Rngs):
        self.block_1 = ResidualBlock((channels, channels), config, rngs)
        self.norm = GroupNorm(channels, config)
        axes = ("embed", "heads")
        make = {"rngs": rngs, "dtype": config.dtype, "param_dtype": config.param_dtype}
        self.query = linear(channels, channels, axes, **make)
        self.key = linear(channels, channels, axes, **make)
        self.value = linear(channels, channels, axes, **make)
        self.out = linear(channels, channels, axes[::-1], **make)
        self.block_2 = ResidualBlock((channels, channels), config, rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        x = self.block_1(x)
        tokens = self.norm(x).reshape(x.shape[0], -1, x.shape[-1])
        q, k, v = (part(tokens)[:, :, None] for part in (self.query, self.key, self.value))
        # A head this wide fits no fused kernel.
        mixed = self.out(attention(q, k, v, backend="xla")[:, :, 0])
        return self.block_2(x + mixed.reshape(x.shape))


class Level(nnx.Module):
    """Residual blocks of one size, and the convolution that leads to the next size, if any."""

    def __init__(
        self,
        channels: tuple[int, int],
        blocks: int,
        config: AutoencoderConfig,
        rngs: nnx.Rngs,
        *,
        resize: str | None,
    ):
        before, after = channels
        self.count, self.resize = blocks, resize
        for i in range(blocks):
            block = ResidualBlock((before if i == 0 else after, after), config, rngs)
            setattr(self, f"block_{i}", block)
        if resize:
            stride = 2 if resize == "down" else 1
            self.resample = _convolution((after, after), config, rngs, stride=stride)

    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B h w O"]:
        for i in range(self.count):
            x = getattr(self, f"block_{i}")(x)
        if self.resize == "down":
            # At the bottom and at the right only.
            x = self.resample(jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0))))
        elif self.resize == "up":
            x = self.resample(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2))
        return x


class Encoder(nnx.Module):
    """Images to the numbers of `Moments`, mean and log-variance along the channels."""

    def __init__(self, config: AutoencoderConfig, rngs: nnx.Rngs):
        widths, last = config.widths, len(config.widths) - 1
        self.levels = last + 1
        self.conv_in = _convolution((config.image_channels, widths[0]), config, rngs)
        for i, width in enumerate(widths):
            channels, resize = (widths[max(i - 1, 0)], width), "down" if i < last else None
            level = Level(channels, config.blocks, config, rngs, resize=resize)
            setattr(self, f"level_{i}", level)
        self.middle = Middle(widths[-1], config, rngs)
        self.norm_out = GroupNorm(widths[-1], config)
        self.conv_out = _convolution((widths[-1], 2 * config.latent_channels), config, rngs)

    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B h w 2C"]:
        x = self.conv_in(x)
        for i in range(self.levels):
            x = getattr(self, f"level_{i}")(x)
        return self.conv_out(jax.nn.silu(self.norm_out(self.middle(x))))


class Decoder(nnx.Module):
    """Samples to images; its levels count from the smallest size up."""

    def __init__(self, config: AutoencoderConfig, rngs: nnx.Rngs):
        widths, last = config.widths[::-1], len(config.widths) - 1
        self.levels = last + 1
        self.conv_in = _convolution((config.latent_channels, widths[0]), config, rngs)
        self.middle = Middle(widths[0], config, rngs)
        for i, width in enumerate(widths):
            channels, resize = (widths[max(i - 1, 0)], width), "up" if i < last else None
            level = Level(channels, config.blocks + 1, config, rngs, resize=resize)
            setattr(self, f"level_{i}", level)
        self.norm_out = GroupNorm(widths[-1], config)
        self.conv_out = _convolution((widths[-1], config.image_channels), config, rngs)

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B H W I"]:
        x = self.middle(self.conv_in(x))
        for i in range(self.levels):
            x = getattr(self, f"level_{i}")(x)
        return self.conv_out(jax.nn.silu(self.norm_out(x)))


class Autoencoder(nnx.Module):
    """Images in [-1, 1] to the transformer's latents, and back.

    Args:
      config: sizes and dtypes.
      rngs: source of the initial parameters (stream "params").
    """

    def __init__(self, config: AutoencoderConfig, rngs: nnx.Rngs):
        self.config = config
        self.encoder = Encoder(config, rngs)
        self.decoder = Decoder(config, rngs)

    def moments(self, images: Float[Array, "B H W 3"]) -> Moments:
        """The distribution of an image's latents, before shift and scale.

        Raises:
          ValueError: height or width is no multiple of `config.factor`.
        """
        factor = self.config.factor
        if images.shape[1] % factor or images.shape[2] % factor:
            raise ValueError(
                f"images of {images.shape[1]} x {images.shape[2]} pixels: the autoencoder needs "
                f"multiples of {factor}"
            )
        both = self.encoder(images.astype(self.config.dtype)).astype(jnp.float32)
        mean, logvar = jnp.split(both, 2, axis=-1)
        return Moments(mean, jnp.clip(logvar, *_LOGVAR_BOUNDS))

    def encode(
        self, images: Float[Array, "B H W 3"], noise: Float[Array, "B h w C"] | None = None
    ) -> Float[Array, "B h w C"]:
        """Latents of images, float32; a sample if `noise` is given, else the mean."""
        moments = self.moments(images)
        sample = moments.mean if noise is None else moments.sample(noise)
        return (sample - self.config.shift) * self.config.scale

    def decode(self, latents: Float[Array, "B h w C"]) -> Float[Array, "B H W 3"]:
        """Images of latents, float32, about in [-1, 1] (not clipped)."""
        sample = latents / self.config.scale + self.config.shift
        return self.decoder(sample.astype(self.config.dtype)).astype(jnp.float32)
