"""Rectified flow: closed forms and properties, without a network."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unialign_jax.diffusion import flow

QUICK = settings(max_examples=40, deadline=None, derandomize=True)
LEVELS = st.floats(0, 1, width=32)
SHIFTS = st.floats(0.25, 8)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@QUICK
@given(LEVELS, SHIFTS)
def test_shift_is_undone_by_its_reciprocal(sigma: float, shift: float) -> None:
    back = flow.shift_sigma(flow.shift_sigma(sigma, shift), 1 / shift)
    assert back == pytest.approx(sigma, abs=1e-12)


@QUICK
@given(LEVELS, SHIFTS, SHIFTS)
def test_two_shifts_are_one_by_their_product(sigma: float, a: float, b: float) -> None:
    twice = flow.shift_sigma(flow.shift_sigma(sigma, a), b)
    assert twice == pytest.approx(flow.shift_sigma(sigma, a * b), abs=1e-12)


@QUICK
@given(LEVELS, st.floats(1, 8))
def test_shift_above_1_moves_towards_noise_and_keeps_the_ends(sigma: float, shift: float) -> None:
    assert flow.shift_sigma(sigma, shift) >= sigma - 1e-12
    assert flow.shift_sigma(0.0, shift) == 0
    assert flow.shift_sigma(1.0, shift) == pytest.approx(1)


def test_training_levels_are_thousandths_from_1_down() -> None:
    levels = flow.training_sigmas()
    np.testing.assert_allclose(levels, np.arange(1000, 0, -1) / 1000, rtol=1e-7)
    assert levels.dtype == np.float32 and levels[0] == 1


def test_training_levels_are_shifted_each_by_the_formula() -> None:
    k = np.arange(1000, 0, -1)
    np.testing.assert_allclose(flow.training_sigmas(3.0), 3 * k / (1000 + 2 * k), rtol=1e-6)


@QUICK
@given(st.integers(1, 200), st.floats(1, 8), st.sampled_from(flow.TABLES))
def test_sampling_tables_fall_from_1_to_0(steps: int, shift: float, table: str) -> None:
    sigmas = flow.sampling_sigmas(steps, shift, table)
    assert sigmas.shape == (steps + 1,) and sigmas.dtype == np.float32
    assert sigmas[0] == pytest.approx(1) and sigmas[-1] == 0
    assert np.all(np.diff(sigmas) < 0)


def test_plain_table_in_closed_form() -> None:
    np.testing.assert_allclose(
        flow.sampling_sigmas(4, 3.0, "plain"), [1, 0.9, 0.75, 0.5, 0], rtol=1e-6
    )


def test_double_shifted_table_shifts_its_end_twice_and_its_middle_once() -> None:
    end = 3 * 0.001 / 1.002
    middle = (1 + end) / 2
    expected = [1, 3 * middle / (1 + 2 * middle), 3 * end / (1 + 2 * end), 0]
    np.testing.assert_allclose(flow.sampling_sigmas(3, 3.0), expected, rtol=1e-6)


def test_tables_without_a_shift_are_even() -> None:
    np.testing.assert_allclose(flow.sampling_sigmas(4, 1.0)[:-1], [1, 0.667, 0.334, 0.001])
    np.testing.assert_allclose(flow.sampling_sigmas(4, 1.0, "plain"), [1, 0.75, 0.5, 0.25, 0])


def test_given_levels_are_shifted_and_ended() -> None:
    sigmas = flow.custom_sigmas(np.array([1.0, 0.5]), 3.0)
    np.testing.assert_allclose(sigmas, [1, 0.75, 0], rtol=1e-6)


@pytest.mark.parametrize(("steps", "table"), [(0, "plain"), (-1, "double_shifted"), (4, "karras")])
def test_wrong_tables_are_refused(steps: int, table: str) -> None:
    with pytest.raises(ValueError, match=r"at least 1 step|double_shifted, plain"):
        flow.sampling_sigmas(steps, 3.0, table)


def test_interpolation_goes_from_data_to_noise_by_example() -> None:
    x, noise = normal(0, 3, 4, 4, 2), normal(1, 3, 4, 4, 2)
    mixed = flow.interpolate(x, noise, jnp.array([0.0, 1.0, 0.25]))
    np.testing.assert_array_equal(mixed[0], x[0])
    np.testing.assert_array_equal(mixed[1], noise[1])
    np.testing.assert_allclose(mixed[2], 0.75 * x[2] + 0.25 * noise[2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("table", flow.TABLES)
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_euler_on_the_straight_line_is_exact_in_any_number_of_steps(steps: int, table: str) -> None:
    x, noise = normal(0, 2, 3), normal(1, 2, 3)
    sigmas = flow.sampling_sigmas(steps, 3.0, table)
    current = jnp.asarray(noise)
    for sigma, following in itertools.pairwise(sigmas):
        # What a network that knows x predicts: (x_sigma - x) / sigma = noise - x.
        current = flow.euler_step(current, (current - x) / sigma, sigma, following)
    np.testing.assert_allclose(current, x, atol=1e-5)


def test_euler_step_is_computed_in_float32() -> None:
    half = jnp.ones(3, jnp.bfloat16)
    step = flow.euler_step(half, half, jnp.float32(1.0), jnp.float32(0.999))
    assert step.dtype == jnp.float32
    np.testing.assert_allclose(step, 0.999, rtol=1e-6)


@QUICK
@given(st.floats(0, 12), st.integers(0, 99))
def test_guidance_is_linear_in_its_scale(scale: float, seed: int) -> None:
    u, c = normal(seed, 5), normal(seed + 1, 5)
    np.testing.assert_allclose(flow.guide(u, c, scale), (1 - scale) * u + scale * c, atol=1e-4)
    np.testing.assert_array_equal(flow.guide(u, c, 0), u)
    np.testing.assert_allclose(flow.guide(u, c, 1), c, atol=1e-6)


def test_logit_normal_has_the_quantiles_of_its_definition() -> None:
    z = jnp.array([-1.0, 0.0, 1.0])
    np.testing.assert_allclose(flow.logit_normal(z), 1 / (1 + np.exp([1, 0, -1])), rtol=1e-6)
    np.testing.assert_allclose(
        flow.logit_normal(z, -0.5, 0.8), 1 / (1 + np.exp([1.3, 0.5, -0.3])), rtol=1e-6
    )


@QUICK
@given(st.floats(-1, 1.75))
def test_mode_density_falls_from_1_to_0_through_all_levels(scale: float) -> None:
    u = np.asarray(flow.mode(jnp.linspace(0, 1, 101), scale))
    assert u[0] == pytest.approx(1, abs=1e-5) and u[-1] == pytest.approx(0, abs=1e-5)
    assert np.all(np.diff(u) <= 1e-5)


def test_mode_density_of_scale_0_is_uniform() -> None:
    r = jnp.linspace(0, 1, 11)
    np.testing.assert_allclose(flow.mode(r, 0.0), 1 - r, atol=1e-6)


def test_level_index_rounds_down_and_stays_in_the_table() -> None:
    u = jnp.array([0.0, 0.0009, 0.001, 0.5, 0.99999, 1.0])
    np.testing.assert_array_equal(flow.level_index(u), [0, 0, 1, 500, 999, 999])


@QUICK
@given(LEVELS)
def test_every_draw_finds_a_level_above_0(u: float) -> None:
    index = int(flow.level_index(jnp.float32(u)))
    assert flow.training_sigmas()[index] > 0


def test_weightings_in_closed_form() -> None:
    sigma = jnp.array([0.1, 0.5, 1.0])
    np.testing.assert_array_equal(flow.loss_weight(sigma, "x0"), 1)
    np.testing.assert_allclose(flow.loss_weight(sigma, "velocity"), [100, 4, 1], rtol=1e-5)
    np.testing.assert_allclose(flow.loss_weight(sigma, "cosmap")[1:], [4 / math.pi, 2 / math.pi])


def test_cosmap_weighting_is_a_density_and_symmetric() -> None:
    sigma = (jnp.arange(2000) + 0.5) / 2000
    weight = flow.loss_weight(sigma, "cosmap")
    assert float(jnp.mean(weight)) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(weight, weight[::-1], rtol=1e-4)


def test_unknown_weighting_is_refused() -> None:
    with pytest.raises(ValueError, match="x0, velocity, cosmap"):
        flow.loss_weight(jnp.ones(1), "snr")


def test_processes_work_under_jit_and_vmap() -> None:
    x, noise, sigma = normal(0, 3, 2, 2, 1), normal(1, 3, 2, 2, 1), jnp.array([0.2, 0.4, 0.9])
    once = jax.jit(flow.interpolate)(x, noise, sigma)
    mapped = jax.vmap(lambda a, b, s: flow.interpolate(a[None], b[None], s[None])[0])(
        x, noise, sigma
    )
    np.testing.assert_allclose(once, mapped, rtol=1e-6)
