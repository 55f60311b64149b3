"""Checks that model configs share."""

from __future__ import annotations

from typing import Any

DTYPES = ("float32", "bfloat16", "float16")


def check_sizes(config: Any, *names: str) -> None:
    """Refuses sizes below 1.

    Raises:
      ValueError: names the field and its value.
    """
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}: at least 1")


def check_dtype(name: str, value: str) -> None:
    """Refuses dtypes that the networks are not made for.

    Raises:
      ValueError: names the field, its value and what it takes.
    """
    if value not in DTYPES:
        raise ValueError(f"{name} is {value!r}; one of {', '.join(DTYPES)}")
