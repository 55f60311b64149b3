"""Group `components`: text encoder, autoencoder and the teachers."""

from __future__ import annotations

from unialign_jax.parity import autoencoder, qwen, siglip, t5
from unialign_jax.parity.golden import GoldenDirectory


def verify(goldens: GoldenDirectory) -> None:
    """Compares every component for which there are results."""
    t5.verify(goldens)
    autoencoder.verify(goldens)
    qwen.verify_tower(goldens)
    siglip.verify(goldens)
