"""Masked diffusion on text: closed forms and properties, without a network."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unialign_jax.diffusion import masked

QUICK = settings(max_examples=25, deadline=None, derandomize=True)
SEEDS = st.integers(0, 2**31)
VOCABULARY = 11
SHAPE = (3, 5)


def random_text(seed: int, mask_id: int) -> tuple[np.ndarray, ...]:
    """Logits, a half-masked text, and its clean targets."""
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(*SHAPE, VOCABULARY)).astype(np.float32)
    words = [i for i in range(VOCABULARY) if i != mask_id]
    targets = rng.choice(words, size=SHAPE).astype(np.int32)
    return logits, np.where(rng.random(SHAPE) < 0.5, mask_id, targets).astype(np.int32), targets


def test_chance_of_masking_is_nearly_the_time() -> None:
    t = jnp.linspace(0, 1, 21)
    np.testing.assert_allclose(
        masked.mask_chance(masked.total_noise(t)), (1 - 1e-3) * t, rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("t", [0.01, 0.3, 0.9])
def test_rate_is_the_derivative_of_the_total_noise(t: float) -> None:
    assert float(jax.grad(masked.total_noise)(t)) == pytest.approx(
        float(masked.rate_noise(t)), rel=1e-5
    )


def test_loss_weight_is_one_over_the_time() -> None:
    t = jnp.array([1e-3, 0.1, 0.5, 0.999])
    np.testing.assert_allclose(masked.loss_weight(t), 1 / t, rtol=2e-5)


def test_importance_time_spreads_the_loss_weight_evenly() -> None:
    """Equal steps of its argument are equal steps of the integral of 1/t, ln t'."""
    t = masked.importance_time(jnp.linspace(0, 1, 11))
    logarithm = np.log(np.asarray(t, np.float64))
    np.testing.assert_allclose(np.diff(logarithm), np.diff(logarithm)[0], rtol=1e-3)
    assert float(t[-1]) == pytest.approx(1, abs=1e-5) and 0 < float(t[0]) < 2e-3


@QUICK
@given(st.integers(1, 4), st.integers(1, 9), SEEDS)
def test_one_time_falls_into_each_stratum_of_each_group(groups: int, size: int, seed: int) -> None:
    uniform = np.random.default_rng(seed).uniform(0.01, 0.99, groups * size).astype(np.float32)
    times = np.asarray(masked.antithetic_times(jnp.asarray(uniform), size))
    strata = np.floor((times - masked.EPS) / (1 - masked.EPS) * size).astype(int)
    for group in strata.reshape(groups, size):
        assert sorted(group) == list(range(size))


def test_times_reach_from_the_smallest_to_1() -> None:
    times = masked.antithetic_times(jnp.array([0.0, 0.999999]))
    np.testing.assert_allclose(times, [masked.EPS, 1], rtol=1e-5)


def test_group_0_is_the_whole_batch() -> None:
    uniform = jnp.array([0.1, 0.9, 0.4, 0.6])
    np.testing.assert_array_equal(
        masked.antithetic_times(uniform), masked.antithetic_times(uniform, 4)
    )


def test_group_that_does_not_divide_the_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="stratify_group 3"):
        masked.antithetic_times(jnp.zeros(4), 3)


@pytest.mark.parametrize("chance", [0.0, 0.25, 0.9, 1.0])
def test_expected_share_of_tokens_is_masked(chance: float) -> None:
    uniform = (jnp.arange(1000).reshape(2, 500) + 0.5) / 1000
    tokens = jnp.ones((2, 500), jnp.int32)
    hit = masked.mask_tokens(tokens, jnp.full((2, 1), chance), uniform, 7) == 7
    assert float(jnp.mean(hit)) == pytest.approx(chance, abs=1e-3)


def test_only_allowed_tokens_are_masked_and_the_rest_is_kept() -> None:
    tokens = jnp.array([[3, 4, 5, 6]])
    allowed = jnp.array([[False, True, False, True]])
    hit = masked.mask_tokens(tokens, jnp.ones((1, 1)), jnp.zeros((1, 4)), 9, allowed)
    np.testing.assert_array_equal(hit, [[3, 9, 5, 9]])


@QUICK
@given(SEEDS, st.integers(0, VOCABULARY - 1))
def test_substituted_log_probabilities_are_normalised(seed: int, mask_id: int) -> None:
    logits, tokens, _ = random_text(seed, mask_id)
    log_probs = masked.substitute(jnp.asarray(logits), tokens, mask_id)
    np.testing.assert_allclose(jax.nn.logsumexp(log_probs, axis=-1), 0, atol=1e-5)
    probs = np.exp(np.asarray(log_probs))
    assert np.all(probs[..., mask_id] == 0)
    visible = tokens != mask_id
    np.testing.assert_array_equal(probs[visible], np.eye(VOCABULARY)[tokens[visible]])


@QUICK
@given(SEEDS, st.integers(0, VOCABULARY - 1), st.floats(-50, 50))
def test_a_constant_on_all_logits_changes_nothing(seed: int, mask_id: int, constant: float) -> None:
    logits, tokens, _ = random_text(seed, mask_id)
    np.testing.assert_allclose(
        masked.substitute(jnp.asarray(logits + np.float32(constant)), tokens, mask_id),
        masked.substitute(jnp.asarray(logits), tokens, mask_id),
        rtol=1e-5,
        atol=1e-4,
    )


@QUICK
@given(SEEDS, st.integers(0, VOCABULARY - 1))
def test_target_log_probabilities_are_the_substituted_ones_gathered(
    seed: int, mask_id: int
) -> None:
    logits, tokens, targets = random_text(seed, mask_id)
    # A wrong visible token must be impossible in both.
    tokens[0, 0] = (mask_id + 1) % VOCABULARY
    targets[0, 0] = (mask_id + 2) % VOCABULARY
    whole = masked.substitute(jnp.asarray(logits), tokens, mask_id)
    gathered = jnp.take_along_axis(whole, targets[..., None], axis=-1)[..., 0]
    direct = masked.target_log_probs(jnp.asarray(logits), tokens, jnp.asarray(targets), mask_id)
    np.testing.assert_allclose(direct, gathered, rtol=1e-6, atol=1e-5)


def test_a_temperature_raises_probabilities_to_its_inverse() -> None:
    log_probs = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (2, 3, 7)))
    np.testing.assert_array_equal(masked.temper(log_probs, 1.0), log_probs)
    expected = np.exp(log_probs) ** 2
    expected /= expected.sum(-1, keepdims=True)
    np.testing.assert_allclose(np.exp(masked.temper(log_probs, 0.5)), expected, rtol=1e-5)
    coldest = np.exp(masked.temper(log_probs, 0.0))
    np.testing.assert_array_equal(coldest, np.eye(7)[np.argmax(log_probs, -1)])
    almost = np.exp(masked.temper(log_probs, 1e-3))
    np.testing.assert_allclose(almost, coldest, atol=1e-3)


def test_visible_tokens_give_no_gradient_and_masked_ones_a_finite_one() -> None:
    logits, tokens, targets = random_text(3, 10)
    gradient = jax.grad(
        lambda x: masked.target_log_probs(x, tokens, jnp.asarray(targets), 10).sum()
    )
    slopes = np.asarray(gradient(jnp.asarray(logits)))
    assert np.all(np.isfinite(slopes))
    assert np.all(slopes[tokens != 10] == 0)
    # d log softmax: 1 - p for the target, -p elsewhere; zero in sum, and nothing for the mask.
    np.testing.assert_allclose(slopes.sum(-1), 0, atol=1e-5)
    np.testing.assert_array_equal(slopes[..., 10], 0)


def test_log_probabilities_are_float32_whatever_the_logits_are() -> None:
    logits, tokens, targets = random_text(0, 10)
    half = jnp.asarray(logits, jnp.bfloat16)
    assert masked.substitute(half, tokens, 10).dtype == jnp.float32
    assert masked.target_log_probs(half, tokens, jnp.asarray(targets), 10).dtype == jnp.float32


@QUICK
@given(SEEDS, st.floats(0.05, 1), st.floats(0, 1))
def test_posterior_of_a_masked_token_sums_to_its_chance(seed: int, a_t: float, s: float) -> None:
    logits, _, _ = random_text(seed, 10)
    all_masked = np.full(SHAPE, 10, np.int32)
    probs = jnp.exp(masked.substitute(jnp.asarray(logits), all_masked, 10))
    q = masked.posterior(probs, a_t, a_t * s, 10)
    np.testing.assert_allclose(q.sum(-1), a_t, rtol=1e-5)
    np.testing.assert_allclose(q[..., 10], a_t * s, rtol=1e-6, atol=1e-30)
    assert float(q.min()) >= 0


def step(a_t: float, a_s: float, seed: int = 0, repeats: int = 1) -> tuple[np.ndarray, ...]:
    logits, tokens, _ = random_text(seed, 10)
    tokens = np.tile(tokens, (repeats, 1))
    probs = jnp.exp(masked.substitute(jnp.asarray(np.tile(logits, (repeats, 1, 1))), tokens, 10))
    uniform = jax.random.uniform(jax.random.key(seed), probs.shape)
    return tokens, np.asarray(masked.reverse_step(tokens, probs, uniform, a_t, a_s, 10)[0])


@QUICK
@given(SEEDS, st.floats(0.1, 1), st.floats(0, 1))
def test_filled_tokens_stay(seed: int, a_t: float, share: float) -> None:
    before, after = step(a_t, a_t * share, seed)
    np.testing.assert_array_equal(after[before != 10], before[before != 10])


def test_last_step_fills_everything_and_a_step_of_no_length_nothing() -> None:
    before, after = step(0.2, 0.0)
    assert np.any(before == 10) and not np.any(after == 10)
    before, after = step(0.4, 0.4)
    np.testing.assert_array_equal(after, before)


def test_share_of_masked_tokens_falls_like_the_chance() -> None:
    before, after = step(0.8, 0.2, repeats=2000)
    assert np.mean(after[before == 10] == 10) == pytest.approx(0.25, abs=0.02)


def test_gumbel_draws_are_in_proportion_to_the_weights() -> None:
    weights = jnp.array([0.5, 0.0, 0.3, 0.2]) * 7
    uniform = jax.random.uniform(jax.random.key(1), (1, 20_000, 4))
    drawn = masked.gumbel_argmax(jnp.broadcast_to(weights, uniform.shape), uniform)
    shares = np.bincount(np.asarray(drawn)[0], minlength=4) / 20_000
    np.testing.assert_allclose(shares, [0.5, 0, 0.3, 0.2], atol=0.015)


@pytest.mark.parametrize("extreme", [0.0, 1 - 2**-24])
def test_gumbel_draws_survive_the_ends_of_the_uniforms(extreme: float) -> None:
    weights = jnp.array([[[0.0, 1.0, 0.0]]])
    assert int(masked.gumbel_argmax(weights, jnp.full((1, 1, 3), extreme))[0, 0]) == 1
