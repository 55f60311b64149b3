"""The alignment losses in closed form."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unialign_jax.diffusion.alignment import (
    TEMPERATURE,
    contrastive_loss,
    cosine_loss,
    normalise_gradient,
    unit,
)

QUICK = settings(max_examples=25, deadline=None, derandomize=True)
SEEDS = st.integers(0, 2**31)


def features(seed: int, rows: int = 6, width: int = 8) -> tuple[jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(seed))
    return tuple(jax.random.normal(key, (rows, width)) for key in keys)


def test_unit_length_and_direction() -> None:
    np.testing.assert_allclose(unit(jnp.array([3.0, 4.0]), 1e-8), [0.6, 0.8], rtol=1e-6)
    assert unit(jnp.ones(2, jnp.bfloat16), 1e-8).dtype == jnp.float32


def test_unit_of_zero_is_zero_with_a_finite_gradient() -> None:
    zero = jnp.zeros((2, 3))
    np.testing.assert_array_equal(unit(zero, 1e-8), 0)
    assert np.all(np.isfinite(jax.grad(lambda x: unit(x, 1e-8).sum())(zero)))


@QUICK
@given(SEEDS, st.floats(0.01, 100))
def test_cosine_loss_of_a_multiple_is_0_and_of_the_opposite_2(seed: int, scale: float) -> None:
    x, _ = features(seed)
    assert float(cosine_loss(x, scale * x)) == pytest.approx(0, abs=1e-5)
    assert float(cosine_loss(x, -scale * x)) == pytest.approx(2, abs=1e-5)


def test_cosine_loss_is_the_mean_over_rows() -> None:
    x = jnp.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    y = jnp.array([[2.0, 0.0], [0.0, 5.0], [1.0, 1.0]])
    assert float(cosine_loss(x, y)) == pytest.approx((0 + 1 + 1 - math.sqrt(0.5)) / 3, abs=1e-6)
    weighted = cosine_loss(x, y, jnp.array([0.0, 2.0, 2.0]))
    assert float(weighted) == pytest.approx((1 + 1 - math.sqrt(0.5)) / 2, abs=1e-6)


def test_cosine_loss_takes_tokens_too() -> None:
    x, y = (f.reshape(2, 3, 8) for f in features(0))
    flat = cosine_loss(x.reshape(6, 8), y.reshape(6, 8))
    assert float(cosine_loss(x, y)) == pytest.approx(float(flat), abs=1e-6)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_contrastive_loss_of_identical_rows_is_the_logarithm_of_their_number(rows: int) -> None:
    same = jnp.ones((rows, 4))
    assert float(contrastive_loss(same, same)) == pytest.approx(math.log(rows), abs=1e-5)


def test_contrastive_loss_of_orthogonal_pairs_in_closed_form() -> None:
    pairs = 3 * jnp.eye(5)
    expected = math.log(1 + 4 * math.exp(-1 / TEMPERATURE))
    assert float(contrastive_loss(pairs, pairs)) == pytest.approx(expected, abs=1e-6)
    expected = math.log(1 + 4 * math.exp(-2))
    assert float(contrastive_loss(pairs, pairs, temperature=0.5)) == pytest.approx(expected, 1e-5)


@QUICK
@given(SEEDS)
def test_contrastive_loss_is_symmetric_and_blind_to_length_and_order(seed: int) -> None:
    image, text = features(seed)
    loss = float(contrastive_loss(image, text))
    assert float(contrastive_loss(text, image)) == pytest.approx(loss, rel=1e-5)
    assert float(contrastive_loss(7 * image, text / 9)) == pytest.approx(loss, rel=1e-5)
    order = np.random.default_rng(seed).permutation(6)
    assert float(contrastive_loss(image[order], text[order])) == pytest.approx(loss, rel=1e-5)


@QUICK
@given(SEEDS, st.sampled_from([1, 2, 3, 6]))
def test_groups_are_the_mean_over_separate_batches(seed: int, group: int) -> None:
    image, text = features(seed)
    alone = [
        float(contrastive_loss(image[i : i + group], text[i : i + group]))
        for i in range(0, 6, group)
    ]
    together = float(contrastive_loss(image, text, group=group))
    assert together == pytest.approx(np.mean(alone), rel=1e-5, abs=1e-6)


def test_group_that_does_not_divide_the_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="contrastive_group 4"):
        contrastive_loss(*features(0), group=4)


@QUICK
@given(SEEDS)
def test_row_of_weight_0_is_neither_positive_nor_negative(seed: int) -> None:
    image, text = features(seed)
    weight = jnp.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    kept = np.flatnonzero(weight)
    expected = float(contrastive_loss(image[kept], text[kept]))
    assert float(contrastive_loss(image, text, weight=weight)) == pytest.approx(expected, rel=1e-5)


def test_row_of_weight_0_gets_no_gradient() -> None:
    image, text = features(0)
    weight = jnp.array([1.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    slopes = jax.grad(contrastive_loss, (0, 1))(image, text, weight=weight)
    for slope in slopes:
        np.testing.assert_array_equal(slope[1], 0)
        assert np.all(np.abs(slope).sum(-1)[[0, 2, 3, 4, 5]] > 0)


@pytest.mark.parametrize("group", [0, 3])
def test_batch_without_any_weight_costs_nothing_and_has_no_nan(group: int) -> None:
    image, text = features(0)
    loss, slopes = jax.value_and_grad(contrastive_loss, (0, 1))(
        image, text, group=group, weight=jnp.zeros(6)
    )
    assert float(loss) == 0
    for slope in slopes:
        np.testing.assert_array_equal(slope, 0)
    assert float(cosine_loss(image, text, jnp.zeros(6))) == 0


def test_group_without_weight_leaves_the_others_as_they_are() -> None:
    image, text = features(0)
    weight = jnp.array([0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    expected = float(contrastive_loss(image[3:], text[3:]))
    loss = contrastive_loss(image, text, group=3, weight=weight)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_zero_features_have_a_finite_gradient() -> None:
    image, text = features(0)
    slopes = jax.grad(contrastive_loss, (0, 1))(image.at[2].set(0), text)
    assert all(np.all(np.isfinite(slope)) for slope in slopes)


@QUICK
@given(SEEDS, st.floats(1e-3, 1e3))
def test_normalised_gradient_has_length_1_and_its_direction(seed: int, scale: float) -> None:
    x, upstream = features(seed)
    value, pull = jax.vjp(normalise_gradient, x)
    np.testing.assert_array_equal(value, x)
    slope = pull(scale * upstream)[0]
    np.testing.assert_allclose(slope, upstream / jnp.linalg.norm(upstream), rtol=1e-4, atol=1e-6)


def test_normalised_gradient_of_zero_is_zero() -> None:
    x, _ = features(0)
    np.testing.assert_array_equal(jax.vjp(normalise_gradient, x)[1](0 * x)[0], 0)
