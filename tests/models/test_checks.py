"""Model configs refuse sizes and dtypes that cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from unialign_jax.models.mmdit_config import MMDiTConfig
from unialign_jax.models.t5 import T5Config


@pytest.mark.parametrize("config", [MMDiTConfig, T5Config])
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("heads", 0, "heads is 0: at least 1"),
        ("layers", -2, "layers is -2: at least 1"),
        ("width", 0, "width is 0: at least 1"),
        ("dtype", "float99", "dtype is 'float99'; one of float32, bfloat16, float16"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(
    config: Any, field: str, value: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        config(**{field: value})


def test_t5_needs_buckets_that_reach_its_largest_distance() -> None:
    with pytest.raises(ValueError, match="relative_max_distance 8"):
        T5Config(relative_buckets=32, relative_max_distance=8)
