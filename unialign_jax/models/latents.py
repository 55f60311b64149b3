"""What the transformer diffuses: the latents of an autoencoder, or the pixels themselves."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from unialign_jax.models import functional, pixels
from unialign_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from unialign_jax.models.functional import Functional, Params

if TYPE_CHECKING:
    from jaxtyping import Array, Float, UInt8

PIXEL_CHANNELS = 3


@dataclasses.dataclass(frozen=True)
class Latents:
    """Images to latents and back.

    Attributes:
      pixel_scale: of pixels as latents, see `models.pixels`.
      config: of the autoencoder; None where pixels are the latents.
      autoencoder: the network; its parameters are `params["vae"]`.
    """

    pixel_scale: float = 1.0
    config: AutoencoderConfig | None = None
    autoencoder: Functional | None = None

    @classmethod
    def of(cls, config: AutoencoderConfig) -> Latents:
        """The latents of an autoencoder."""
        network = functional.build(lambda rngs: Autoencoder(config, rngs))
        return cls(config=config, autoencoder=network)

    @property
    def factor(self) -> int:
        """Pixels per latent along each side."""
        return 1 if self.config is None else self.config.factor

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return PIXEL_CHANNELS if self.config is None else self.config.latent_channels

    def encode(self, params: Params, images: Any, noise: Any = None) -> Float[Array, "B h w C"]:
        """Latents of uint8 images; anything but uint8 are latents already and is returned.

        Args:
          params: holds "vae" where there is an autoencoder.
          images: [B, H, W, 3].
          noise: [B, h, w, C], standard normal; draws from the autoencoder's distribution, as the
            reference does. None takes its mean. Of no effect on pixels.
        """
        if images.dtype != jnp.uint8 or self.autoencoder is None:
            return pixels.encode(images, self.pixel_scale)
        return self.autoencoder.bind(params["vae"]).encode(pixels.encode(images), noise)

    def decode(self, params: Params, latents: Float[Array, "B h w C"]) -> UInt8[Array, "B H W 3"]:
        """uint8 images of latents."""
        if self.autoencoder is None:
            return pixels.decode(latents, self.pixel_scale)
        return pixels.decode(self.autoencoder.bind(params["vae"]).decode(latents))
