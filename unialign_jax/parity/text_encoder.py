"""The goldens' stand-in for T5: an embedding table plus positions."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from unialign_jax.parity.golden import GoldenDirectory


class StandInTextEncoder:
    """embeds(ids) = table[ids] + position[:L]."""

    def __init__(self, goldens: GoldenDirectory):
        file = goldens.open("losses/stand_in_text_encoder.safetensors")
        self.table = jnp.asarray(file.get("table"))
        self.position = jnp.asarray(file.get("position"))
        self.null_ids = file.get("null_ids").astype(np.int32)

    def __call__(self, ids: Any) -> Any:
        return self.table[ids] + self.position[: ids.shape[1]]
