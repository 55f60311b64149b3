"""Masked (absorbing-state) diffusion on text with the SUBS parameterisation (arXiv 2406.07524).

Each token of a text is replaced by the mask token with probability (1 - eps) t; the network
predicts the tokens, its mask logit removed and visible tokens carried over. No networks here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from unialign_jax.parallel.rows import ALL_ROWS, Rows

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

# Large and finite, so that products with 0 stay 0.
NEGATIVE = -1e6
EPS = 1e-3


def total_noise(t: Float[Array, "*B"], eps: float = EPS) -> Float[Array, "*B"]:
    """The log-linear schedule's total noise, -ln(1 - (1 - eps) t)."""
    return -jnp.log1p(-(1 - eps) * t)


def rate_noise(t: Float[Array, "*B"], eps: float = EPS) -> Float[Array, "*B"]:
    """Its derivative, (1 - eps) / (1 - (1 - eps) t) = (1 - eps) exp(total noise)."""
    # As an exponential: a fused 1 - (1 - eps) t loses five digits near t = 1.
    return (1 - eps) * jnp.exp(total_noise(t, eps))


def mask_chance(sigma: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """The chance that a token is masked at total noise sigma, 1 - exp(-sigma)."""
    return 1 - jnp.exp(-sigma)


def loss_weight(t: Float[Array, "*B"], eps: float = EPS) -> Float[Array, "*B"]:
    """The weight of a masked token's negative log-likelihood, rate / (exp(sigma) - 1) = 1 / t."""
    return rate_noise(t, eps) / jnp.expm1(total_noise(t, eps))


def importance_time(t: Float[Array, "*B"], eps: float = EPS) -> Float[Array, "*B"]:
    """The change of variable that makes the loss weight's integral uniform (off by default)."""
    one = jnp.ones((), jnp.float32)
    # log1p throughout: ln(1 - exp(x)) formed in two steps costs 2e-5 of the result in float32.
    f_1 = jnp.log1p(-jnp.exp(-total_noise(one, eps)))
    f_0 = jnp.log1p(-jnp.exp(-(eps + total_noise(0 * one, eps))))
    sigma = -jnp.log1p(-jnp.exp(t * f_1 + (1 - t) * f_0))
    return -jnp.expm1(-sigma) / (1 - eps)


def antithetic_times(
    uniform: Float[Array, " B"], group: int = 0, minimum: float = EPS, rows: Rows = ALL_ROWS
) -> Float[Array, " B"]:
    """Stratified times: one in each of n equal strata of [minimum, 1].

    Args:
      uniform: draws in [0, 1).
      group: the n over which times are stratified; 0 is the whole batch.
      minimum: smallest time.
      rows: where the batch lies.

    Raises:
      ValueError: the batch is no multiple of the group.
    """
    batch = uniform.shape[0] * rows.parts
    size = group or batch
    if batch % size:
        raise ValueError(f"stratify_group {size} does not divide the batch {batch}")
    offset = (rows.indices(uniform.shape[0]) % size) / size
    return (1 - minimum) * jnp.mod(uniform / size + offset, 1.0) + minimum


def mask_tokens(
    tokens: Int[Array, "B L"],
    chance: Float[Array, "B 1"],
    uniform: Float[Array, "B L"],
    mask_id: int,
    allowed: Bool[Array, "B L"] | None = None,
) -> Int[Array, "B L"]:
    """Replaces tokens by the mask where `uniform < chance` (and where `allowed`)."""
    hit = uniform < chance
    return jnp.where(hit if allowed is None else hit & allowed, mask_id, tokens)


def substitute(
    logits: Float[Array, "B L V"], tokens: Int[Array, "B L"], mask_id: int
) -> Float[Array, "B L V"]:
    """SUBS log-probabilities, float32: the mask is never predicted, visible tokens are certain."""
    logits = _without_mask(logits, mask_id)
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    certain = jnp.where(jax.nn.one_hot(tokens, logits.shape[-1], dtype=jnp.bool), 0.0, NEGATIVE)
    return jnp.where((tokens == mask_id)[..., None], log_probs, certain)


def _without_mask(logits: Float[Array, "B L V"], mask_id: int) -> Float[Array, "B L V"]:
    """Logits in float32, that of the mask token lowered until it cannot be chosen."""
    words = jnp.arange(logits.shape[-1])
    return logits.astype(jnp.float32) + jnp.where(words == mask_id, NEGATIVE, 0.0)


def temper(log_probs: Float[Array, "B L V"], temperature: float) -> Float[Array, "B L V"]:
    """Log probabilities at a sampling temperature: 1 leaves them, 0 puts all on the greatest."""
    if temperature == 1:
        return log_probs
    if temperature == 0:
        best = jax.nn.one_hot(jnp.argmax(log_probs, axis=-1), log_probs.shape[-1], dtype=bool)
        return jnp.where(best, 0.0, NEGATIVE)
    return jax.nn.log_softmax(log_probs / temperature, axis=-1)


def target_log_probs(
    logits: Float[Array, "B L V"],
    tokens: Int[Array, "B L"],
    targets: Int[Array, "B L"],
    mask_id: int,
) -> Float[Array, "B L"]:
    """SUBS log-probability of each target, without forming the [B, L, V] result of `substitute`.

    Equal to `substitute(logits, tokens, mask_id)` gathered at `targets`.
    """
    logits = _without_mask(logits, mask_id)
    # A sum over comparisons, whose gradient is one pass; that of a look-up is a scatter.
    words = jnp.arange(logits.shape[-1])
    chosen = jnp.sum(jnp.where(words == targets[..., None], logits, 0.0), axis=-1)
    masked = chosen - jax.nn.logsumexp(logits, axis=-1)
    certain = jnp.where(tokens == targets, 0.0, NEGATIVE)
    return jnp.where(tokens == mask_id, masked, certain)


def posterior(
    probs: Float[Array, "B L V"], a_t: Array, a_s: Array, mask_id: int
) -> Float[Array, "B L V"]:
    """Unnormalised q(x_s | x_t, x_0 ~ probs) of a masked token: unmask, or stay masked.

    Args:
      probs: predicted distribution of the clean token.
      a_t: chance of being masked at the present time.
      a_s: chance at the next, smaller time.
      mask_id: index of the mask token.
    """
    q = probs * (a_t - a_s)
    return q.at[..., mask_id].set(a_s)


def gumbel_argmax(
    weights: Float[Array, "B L V"], uniform: Float[Array, "B L V"]
) -> Int[Array, "B L"]:
    """Samples an index in proportion to `weights` by the Gumbel trick, in the reference's form."""
    noise = 1e-10 - jnp.log(uniform + 1e-10)
    return jnp.argmax(weights / noise, axis=-1).astype(jnp.int32)


def reverse_step(
    tokens: Int[Array, "B L"],
    probs: Float[Array, "B L V"],
    uniform: Float[Array, "B L V"],
    a_t: Array,
    a_s: Array,
    mask_id: int,
) -> tuple[Int[Array, "B L"], Float[Array, "B L V"]]:
    """One ancestral step; tokens that are filled already stay.

    Returns:
      The tokens at the smaller time, and the weights they were drawn from.
    """
    q = posterior(probs, a_t, a_s, mask_id)
    return jnp.where(tokens == mask_id, gumbel_argmax(q, uniform), tokens), q
