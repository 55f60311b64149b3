"""The goldens see what they should: every deliberate mistake in the code is caught.

The check that catches a mistake holds without it, and fails in the tensor that the mistake is
about, so that none is caught for another reason.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest

from tests.parity import (
    checks,
    component_mistakes,
    loss_mistakes,
    network_mistakes,
    optimiser_mistakes,
    sampler_mistakes,
    weight_mistakes,
)
from tests.parity.mistakes import TABLE, Mistake
from unialign_jax.convert.names import POSITION_BUFFER
from unialign_jax.errors import UserError
from unialign_jax.parity.golden import Row

# Importing them fills the table.
ROOMS = (
    network_mistakes,
    weight_mistakes,
    loss_mistakes,
    sampler_mistakes,
    optimiser_mistakes,
    component_mistakes,
)


@functools.cache
def tensors_of(check: str) -> frozenset[str]:
    """What a check compares; all of it holds in the code as it is."""
    rows = checks.run(check)
    assert rows and all(row.ok for row in rows), [row for row in rows if not row.ok]
    return frozenset(row.tensor for row in rows)


def failures_of(check: str) -> dict[str, Row]:
    """The comparisons that do not hold."""
    try:
        rows = checks.run(check)
    except UserError as error:
        # Weights carry the table of positions, which is compared before anything is run.
        assert POSITION_BUFFER in str(error)
        rows = [Row(check, POSITION_BUFFER, 1.0, 1.0, 0.0, False)]
    return {row.tensor: row for row in rows if not row.ok}


@pytest.mark.parametrize("mistake", TABLE, ids=lambda mistake: mistake.name)
def test_a_deliberate_mistake_is_caught(mistake: Mistake, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mistake.tensor in tensors_of(mistake.check)
    mistake.apply(monkeypatch)
    wrong = failures_of(mistake.check)
    assert mistake.tensor in wrong, sorted(wrong) or "nothing was over its tolerance"
    assert np.isfinite(wrong[mistake.tensor].max_abs), "a difference in value, not in shape"


def test_the_mistakes_are_many_and_different() -> None:
    names = [mistake.name for mistake in TABLE]
    assert len(set(names)) == len(names) >= 24
    assert {mistake.check for mistake in TABLE} == set(checks.CHECKS)
