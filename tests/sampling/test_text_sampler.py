"""Ancestral decoding with a network whose answer is known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unialign_jax.models.mmdit import Output
from unialign_jax.sampling import samplers

MASK, VOCABULARY, LENGTH, ROWS = 9, 10, 6, 400
# A third of the draws: the second most probable token.
LOGITS = np.full(VOCABULARY, -20.0, np.float32)
LOGITS[[3, 5]] = np.log([2 / 3, 1 / 3])


def network(branch, heads) -> Output:
    del heads
    return Output(logits=jnp.broadcast_to(LOGITS, (*branch.text.shape[:2], VOCABULARY)))


def fill(temperature: float, seed: int = 0, steps: int = 12) -> np.ndarray:
    tokens = jnp.full((ROWS, LENGTH), MASK, jnp.int32).at[:, 0].set(7)
    filled, _ = samplers.sample_text(
        network,  # pyright: ignore[reportArgumentType]
        lambda ids: jnp.zeros((*ids.shape, 4)),
        None,
        tokens,
        samplers.uniform_from_key(jax.random.key(seed), (ROWS, LENGTH, VOCABULARY)),
        steps=steps,
        mask_id=MASK,
        temperature=temperature,
    )
    return np.asarray(filled)


@pytest.mark.parametrize(("temperature", "share"), [(1.0, 1 / 3), (0.5, 1 / 5)])
def test_tokens_are_drawn_in_proportion_at_the_temperature(temperature: float, share: float):
    filled = fill(temperature)
    assert np.all(filled[:, 0] == 7)
    assert set(np.unique(filled[:, 1:])) == {3, 5}
    # 5 standard deviations of a share of 2,000 draws.
    assert np.mean(filled[:, 1:] == 5) == pytest.approx(share, abs=0.053)


@pytest.mark.parametrize("seed", [0, 1])
def test_without_temperature_every_token_is_the_most_probable(seed: int):
    filled = fill(0.0, seed)
    assert np.all(filled[:, 0] == 7) and np.all(filled[:, 1:] == 3)
