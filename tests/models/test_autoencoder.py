"""The autoencoder against recorded numbers and against diffusers itself."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from unialign_jax.convert import autoencoder_names as names
from unialign_jax.models import functional
from unialign_jax.models.autoencoder import Autoencoder, AutoencoderConfig, Moments
from unialign_jax.models.tiling import decode_tiled

COMPONENTS = pathlib.Path(__file__).parents[1] / "goldens" / "components"
TINY = AutoencoderConfig(widths=(4, 8), blocks=1, latent_channels=4, norm_groups=2)


class Bound:
    """The methods of an autoencoder over its parameters, each compiled as a whole."""

    def __init__(self, config: AutoencoderConfig, params: Any):
        build = functional.build(lambda rngs: Autoencoder(config, rngs))
        self.params = params
        self.call = jax.jit(lambda p, name, *x: getattr(build.bind(p), name)(*x), static_argnums=1)

    def __getattr__(self, name: str) -> Any:
        return lambda *x: self.call(self.params, name, *x)


def random_params(config: AutoencoderConfig, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    draw = lambda leaf: rng.normal(0.1, 0.3, leaf.shape).astype(leaf.dtype)
    return jax.tree.map(draw, names.abstract_parameters(config))


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def nhwc(x: np.ndarray) -> np.ndarray:
    return x.transpose(0, 2, 3, 1)


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-5) -> None:
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.max(np.abs(actual - expected)) <= tolerance * np.max(np.abs(expected))


@pytest.fixture(scope="module")
def golden() -> tuple[AutoencoderConfig, Bound, dict[str, np.ndarray]]:
    config = names.autoencoder_config_from_json(
        json.loads((COMPONENTS / "vae/config.json").read_text())
    )
    state = load_file(COMPONENTS / "vae/diffusion_pytorch_model.safetensors")
    model = Bound(config, names.autoencoder_from_torch(state, config))
    with np.load(COMPONENTS / "vae_io.npz") as file:
        return config, model, dict(file)


@pytest.mark.parametrize("case", ["a", "b"])
def test_latents_and_pictures_equal_the_recorded_ones(golden, case: str) -> None:
    _, model, io = golden
    image, noise = nhwc(io[f"{case}_image"]), nhwc(io[f"{case}_noise"])
    assert_close(model.encode(image, noise), nhwc(io[f"{case}_model_latents"]))
    mean = (nhwc(io[f"{case}_mean"]) - 0.0609) * 1.5305
    assert_close(model.encode(image), mean)
    assert_close(model.decode(nhwc(io[f"{case}_decode_in"])), nhwc(io[f"{case}_decoded"]))


def test_log_variance_is_clamped() -> None:
    params = random_params(TINY, 0)
    bias = params["encoder"]["conv_out"]["bias"]
    for value, bound in ((99.0, 20.0), (-99.0, -30.0)):
        bias[TINY.latent_channels :] = value
        moments = Bound(TINY, params).moments(normal(1, 1, 8, 8, 3))
        np.testing.assert_allclose(moments.logvar, bound)


def test_sample_of_known_moments() -> None:
    moments = Moments(jnp.full((1, 1, 1, 1), 2.0), jnp.full((1, 1, 1, 1), np.log(9.0)))
    assert float(moments.sample(jnp.ones((1, 1, 1, 1)))[0, 0, 0, 0]) == pytest.approx(5.0)


def live(config: AutoencoderConfig, seed: int, **more: Any) -> tuple[Any, Any]:
    """A diffusers model with random weights, and ours over the same."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    levels = len(config.widths)
    model = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.widths,
        layers_per_block=config.blocks,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
        scaling_factor=config.scale,
        shift_factor=config.shift,
        use_quant_conv=False,
        use_post_quant_conv=False,
        **more,
    ).eval()
    params = random_params(config, seed)
    state = names.autoencoder_to_torch(params, config)
    tensors = {name: torch.from_numpy(array.copy()) for name, array in state.items()}
    model.load_state_dict(tensors, strict=True)
    assert names.autoencoder_config_from_json(dict(model.config)) == config
    return model, Bound(config, params)


@pytest.mark.parametrize(
    ("config", "height", "width"),
    [
        (TINY, 6, 10),
        (AutoencoderConfig(widths=(8, 16, 16), blocks=2, latent_channels=16, norm_groups=8), 20, 8),
        (AutoencoderConfig(widths=(6,), blocks=3, latent_channels=3, norm_groups=3), 5, 7),
    ],
)
def test_live_diffusers_at_other_sizes(config: AutoencoderConfig, height: int, width: int) -> None:
    torch = pytest.importorskip("torch")
    theirs, ours = live(config, 3)
    image = normal(4, 2, 3, height, width)
    with torch.no_grad():
        distribution = theirs.encode(torch.from_numpy(image)).latent_dist
        latents = normal(5, 2, config.latent_channels, height // config.factor, 4)
        picture = theirs.decode(torch.from_numpy(latents)).sample.numpy()
    moments = ours.moments(nhwc(image))
    assert_close(moments.mean, nhwc(distribution.mean.numpy()))
    assert_close(moments.logvar, nhwc(distribution.logvar.numpy()))
    scaled = (nhwc(latents) - config.shift) * config.scale
    assert_close(ours.decode(scaled), nhwc(picture), 2e-5)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (20, 9), (33, 40)])
def test_tiles_are_those_of_diffusers(height: int, width: int) -> None:
    torch = pytest.importorskip("torch")
    theirs, ours = live(TINY, 6, sample_size=16)
    theirs.enable_tiling()
    latents = normal(7, 1, TINY.latent_channels, height, width)
    with torch.no_grad():
        expected = nhwc(theirs.decode(torch.from_numpy(latents)).sample.numpy())
    decode = jax.jit(lambda tile: ours.decode((tile - TINY.shift) * TINY.scale))
    tiled = decode_tiled(decode, nhwc(latents), TINY.factor, tile=8)
    assert_close(tiled, expected, 2e-5)


def test_tiles_blend_linearly_and_cover_the_image() -> None:
    """With a decoder that only enlarges, tiles agree where they overlap: the result is exact."""
    latents = normal(8, 2, 23, 17, 3)
    enlarge = lambda tile: np.repeat(np.repeat(tile, 4, 1), 4, 2)
    for tile, overlap in ((8, 0.25), (8, 0.5), (16, 0.25), (64, 0.25)):
        tiled = decode_tiled(enlarge, latents, 4, tile=tile, overlap=overlap)
        np.testing.assert_allclose(tiled, enlarge(latents), rtol=1e-6)


@pytest.mark.parametrize("overlap", [0.0, 1.0])
def test_tiles_that_cannot_overlap_are_refused(overlap: float) -> None:
    with pytest.raises(ValueError, match="cannot overlap"):
        decode_tiled(lambda tile: tile, normal(0, 1, 9, 9, 1), 1, tile=8, overlap=overlap)


def test_bfloat16_stays_close() -> None:
    params = random_params(TINY, 9)
    image = normal(10, 1, 16, 16, 3)
    exact = Bound(TINY, params)
    half = Bound(dataclasses.replace(TINY, dtype="bfloat16"), params)
    latents = exact.encode(image)
    assert half.encode(image).dtype == jnp.float32
    assert_close(half.encode(image), latents, 0.05)
    assert_close(half.decode(latents), exact.decode(latents), 0.05)


def test_every_parameter_is_created_in_the_type_asked_for() -> None:
    half = names.abstract_parameters(dataclasses.replace(TINY, param_dtype="bfloat16"))
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(half)} == {"bfloat16"}


def test_images_of_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="images of 7 x 8 pixels: .* multiples of 2"):
        Bound(TINY, random_params(TINY, 0)).moments(normal(0, 1, 7, 8, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": (4, 7)}, r"widths are \(4, 7\).*norm_groups 2"),
        ({"widths": ()}, "at least one"),
        ({"blocks": 0}, "blocks is 0"),
        ({"scale": 0.0}, "scale is 0.0"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
    ],
)
def test_wrong_sizes_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)
