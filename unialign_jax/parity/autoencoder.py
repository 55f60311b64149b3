"""Group `components`: the autoencoder."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from unialign_jax.convert import autoencoder_names as names
from unialign_jax.models import functional
from unialign_jax.models.autoencoder import Autoencoder, Moments
from unialign_jax.parity.golden import GoldenDirectory
from unialign_jax.parity.transformer import nchw, nhwc

FOLDER = "components/vae"
RESULTS = "components/vae_io.npz"


class GoldenAutoencoder:
    """The golden autoencoder: its methods, each compiled as a whole."""

    def __init__(self, goldens: GoldenDirectory, folder: str = FOLDER):
        self.config = names.autoencoder_config_from_json(goldens.json(f"{folder}/config.json"))
        file = goldens.open(f"{folder}/diffusion_pytorch_model.safetensors")
        params = names.autoencoder_from_torch(file.all(), self.config)
        build = functional.build(lambda rngs: Autoencoder(self.config, rngs))
        self._params = jax.tree.map(jnp.asarray, params)
        self._call = jax.jit(
            lambda params, method, *args: getattr(build.bind(params), method)(*args),
            static_argnums=1,
        )

    def moments(self, image: Any) -> Moments:
        """As `Autoencoder.moments`."""
        return self._call(self._params, "moments", image)

    def raw_moments(self, image: Any) -> Any:
        """Mean and log-variance along the channels, not clamped."""
        return self._call(self._params, "encoder", image)

    def encode(self, image: Any, noise: Any) -> Any:
        """As `Autoencoder.encode`."""
        return self._call(self._params, "encode", image, noise)

    def decode(self, latents: Any) -> Any:
        """As `Autoencoder.decode`."""
        return self._call(self._params, "decode", latents)


def verify(goldens: GoldenDirectory) -> None:
    """Compares moments, samples, latents and pictures of every recorded image."""
    if not goldens.lists(RESULTS):
        return
    model = GoldenAutoencoder(goldens)
    file = goldens.open(RESULTS)
    for key in [key for key in file.arrays if key.endswith("_image")]:
        case = key.removesuffix("_image")
        image, noise = nhwc(file.get(key)), nhwc(file.get(f"{case}_noise"))
        moments = model.moments(image)
        computed = {
            "moments": model.raw_moments(image),
            "mean": moments.mean,
            "logvar": moments.logvar,
            "std": jnp.exp(0.5 * moments.logvar),
            "sample": moments.sample(noise),
            "model_latents": model.encode(image, noise),
        }
        for name, value in computed.items():
            file.check(f"{case}_{name}", nchw(value))
        file.check(f"{case}_decoded", nchw(model.decode(nhwc(file.get(f"{case}_decode_in")))))
