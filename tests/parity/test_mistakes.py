"""The goldens see what they should: every deliberate mistake in the code is caught.

The check that catches a mistake holds without it, and fails in the tensor that the mistake is
about, so that none is caught for another reason.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest

from tests.parity import checks, loss_mistakes, network_mistakes, sampler_mistakes
from tests.parity.mistakes import TABLE, Mistake
from unialign_jax.errors import UserError

ROOMS = (network_mistakes, loss_mistakes, sampler_mistakes)


@functools.cache
def tensors_of(check: str) -> frozenset[str]:
    """What a check compares; all of it holds in the code as it is."""
    rows = checks.run(check)
    assert rows and all(row.ok for row in rows), [row for row in rows if not row.ok]
    return frozenset(row.tensor for row in rows)


@pytest.mark.parametrize("mistake", TABLE, ids=lambda mistake: mistake.name)
def test_a_deliberate_mistake_is_caught(mistake: Mistake, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mistake.tensor in tensors_of(mistake.check)
    mistake.apply(monkeypatch)
    try:
        rows = checks.run(mistake.check)
    except UserError as error:
        # Weights carry the table of positions, which is compared before anything is run.
        assert mistake.tensor in str(error)
        return
    wrong = {row.tensor: row for row in rows if not row.ok}
    assert mistake.tensor in wrong, sorted(wrong) or "nothing was over its tolerance"
    assert np.isfinite(wrong[mistake.tensor].max_rel), "a difference in value, not in shape"


def test_the_mistakes_are_many_and_different() -> None:
    names = [mistake.name for mistake in TABLE]
    assert len(set(names)) == len(names) >= 24
    assert {mistake.check for mistake in TABLE} == set(checks.CHECKS)
