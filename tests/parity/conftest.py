"""The verdict on the stored goldens, reached once."""

from __future__ import annotations

import pytest

from tests.parity.checks import GOLDENS
from unialign_jax.parity.verify import Verdict, verify_directory


@pytest.fixture(scope="session")
def verdict() -> Verdict:
    """`unialign verify tests/goldens`, every group; compiles for a minute."""
    return verify_directory(GOLDENS)
