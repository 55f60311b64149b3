"""The table of deliberate mistakes: what each one does to the code, and which check sees it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

Patch = pytest.MonkeyPatch
TABLE: list[Mistake] = []


@dataclasses.dataclass(frozen=True)
class Mistake:
    """One wrong reading of the reference.

    Attributes:
      name: a sentence.
      apply: patches the package's own functions.
      check: a key of `checks.CHECKS`.
      tensor: what the check must find to be over its tolerance.
    """

    name: str
    apply: Callable[[Patch], None]
    check: str
    tensor: str


def mistake(check: str, tensor: str) -> Callable[[Callable[[Patch], None]], Callable]:
    """Enters a function into the table; its name is the sentence that describes it."""

    def enter(apply: Callable[[Patch], None]) -> Callable[[Patch], None]:
        TABLE.append(Mistake(apply.__name__.replace("_", " ").strip(), apply, check, tensor))
        return apply

    return enter


def around(patch: Patch, owner: Any, name: str, function: Callable[..., Any]) -> None:
    """Replaces `owner.name` by `function`, which gets the original before its arguments."""
    original = getattr(owner, name)

    def replaced(*args: Any, **kwargs: Any) -> Any:
        return function(original, *args, **kwargs)

    patch.setattr(owner, name, replaced)


def swap(patch: Patch, owner: Any, first: str, second: str) -> None:
    """Exchanges two attributes."""
    a, b = getattr(owner, first), getattr(owner, second)
    patch.setattr(owner, first, b)
    patch.setattr(owner, second, a)
