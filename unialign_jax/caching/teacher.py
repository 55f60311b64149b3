"""What every teacher is to the cache: images and texts in, features of one width out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float, UInt8


class Teacher(Protocol):
    """A frozen encoder of images and texts.

    A row's features depend on that row alone, not on the batch that it comes in: a text teacher
    averages over a text's own tokens, without padding.
    """

    @property
    def name(self) -> str:
        """A short word; the cache is called by it unless told otherwise."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes with whatever changes the features: weights, tokenizer, preprocessing."""
        ...

    @property
    def pixels(self) -> int:
        """P, height and width of the images that it takes."""
        ...

    def image_features(
        self, images: UInt8[np.ndarray, "B P P 3"], *, grid: bool = False
    ) -> Float[np.ndarray, "B A"] | Float[np.ndarray, "B R C A"]:
        """Features of whole images or, with `grid`, of their parts in rows and columns."""
        ...

    def text_features(self, texts: Sequence[str]) -> Float[np.ndarray, "B A"]:
        """Features of texts."""
        ...
