"""The dual encoder: what its features depend on, and what they do not."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unialign_jax.diffusion import alignment
from unialign_jax.models.functional import count_parameters
from unialign_jax.models.teachers.scenes import DualEncoderConfig, build

SMALL = DualEncoderConfig(
    pixels=16, patch_size=4, vocab_size=40, features=12, width=32, heads=2, layers=2
)


@pytest.fixture(scope="module")
def params():
    return jax.jit(build(SMALL).init)(jax.random.key(0))


class Encoder:
    """The three outputs over one set of parameters, compiled."""

    def __init__(self, params):
        network = build(SMALL)
        grid = jax.jit(lambda p, x: network.bind(p).image_grid(x))
        pooled = jax.jit(lambda p, x: network.bind(p).image_features(x))
        text = jax.jit(lambda p, ids, mask: network.bind(p).text_features(ids, mask))
        self.image_grid = lambda images: np.asarray(grid(params, images))
        self.image_features = lambda images: np.asarray(pooled(params, images))
        self.text_features = lambda ids, mask: np.asarray(text(params, ids, mask))


@pytest.fixture(scope="module")
def encoder(params):
    return Encoder(params)


def pictures(count: int, pixels: int = 16) -> np.ndarray:
    shape = (count, pixels, pixels, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def texts(count: int, length: int) -> np.ndarray:
    return np.random.default_rng(1).integers(2, 40, (count, length), dtype=np.int32)


def test_images_become_a_grid_whose_mean_are_the_pooled_features(encoder):
    grid = encoder.image_grid(pictures(2))
    assert grid.shape == (2, 4, 4, 12) and grid.dtype == np.float32
    pooled = encoder.image_features(pictures(2))
    np.testing.assert_allclose(pooled, grid.mean((1, 2)), atol=1e-6)


@pytest.mark.parametrize(("pixels", "patch", "rows"), [(16, 4, 4), (32, 4, 8), (64, 8, 8)])
def test_the_grid_has_a_cell_per_patch(pixels, patch, rows):
    network = build(dataclasses.replace(SMALL, pixels=pixels, patch_size=patch))
    grid = jax.eval_shape(
        lambda p: network.bind(p).image_grid(pictures(3, pixels)), network.abstract
    )
    assert grid.shape == (3, rows, rows, 12)


def test_pixels_may_be_bytes_or_floats(encoder):
    images = pictures(2)
    floats = images.astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(
        encoder.image_features(images), encoder.image_features(floats), atol=1e-5
    )


def test_a_patch_shows_in_its_own_cell_of_the_grid_most(encoder):
    images = np.repeat(pictures(1), 17, axis=0)
    for k in range(16):
        row, column = divmod(k, 4)
        images[k, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] ^= 255
    grid = encoder.image_grid(images).reshape(17, 16, -1)
    change = np.linalg.norm(grid[:16] - grid[16], axis=-1)
    assert (np.argmax(change, axis=1) == np.arange(16)).all()


def test_padding_changes_no_text_features(encoder):
    ids = texts(3, 6)
    alone = encoder.text_features(ids, np.ones((3, 6), bool))
    for filler in (0, 1, 39):
        padded = np.concatenate([ids, np.full((3, 4), filler, np.int32)], axis=1)
        mask = np.arange(10)[None].repeat(3, 0) < 6
        np.testing.assert_allclose(encoder.text_features(padded, mask), alone, atol=1e-5)


def test_the_order_of_words_changes_text_features(encoder):
    ids = texts(3, 6)
    mask = np.ones((3, 6), bool)
    swapped = ids[:, [1, 0, 2, 3, 4, 5]]
    first, second = encoder.text_features(ids, mask), encoder.text_features(swapped, mask)
    assert np.abs(first - second).max() > 1e-3


def test_every_parameter_has_a_part_in_the_loss(params):
    network = build(SMALL)

    def loss(params):
        model = network.bind(params)
        return alignment.contrastive_loss(
            model.image_features(pictures(4)),
            model.text_features(texts(4, 6), np.ones((4, 6), bool)),
            temperature=model.temperature,
        )

    for path, gradient in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(params)):
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0, path


def test_the_temperature_starts_where_clips_does_and_has_a_floor(params):
    network = build(SMALL)
    assert float(network.bind(params).temperature) == pytest.approx(0.07)
    cold = {**params, "log_temperature": jnp.float32(-9.0)}
    assert float(network.bind(cold).temperature) == pytest.approx(0.01)


def test_the_shapes_are_known_before_anything_is_allocated(params):
    network = build(SMALL)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda x: x.shape, network.abstract)
    assert count_parameters(params) == count_parameters(network.abstract)
    assert math.isclose(float(params["log_temperature"]), math.log(0.07), rel_tol=1e-6)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pixels": 8}, "pixels is 8: 16 to 64"),
        ({"pixels": 128}, "pixels is 128: 16 to 64"),
        ({"patch_size": 5}, "pixels 16 is not a multiple of 5"),
        ({"width": 33}, "width 33 is not a multiple of heads 2"),
        ({"layers": 0}, "layers is 0: at least 1"),
    ],
)
def test_impossible_sizes_are_refused_by_name(changes, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(SMALL, **changes)
