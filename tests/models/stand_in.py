"""A stand-in for the network, a batch for it, and its loss: numbers that follow from the inputs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unialign_jax import objective
from unialign_jax.models.mmdit import Output
from unialign_jax.objective import Batch, TextTokens
from unialign_jax.objective_config import ObjectiveConfig

B, L, V, SIDE, WIDTH = 4, 6, 9, 4, 8
MASK, END = 8, 1
TOKENS = TextTokens(MASK, END, np.array([[3, END, END, END, END, END]], np.int32))


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def encode(ids: Any) -> jax.Array:
    """One number per token: its id."""
    return jnp.asarray(ids, jnp.float32)[..., None]


class StandIn:
    """Answers with random features; `velocity` and `logits` may be given."""

    def __init__(self, velocity: Any = None, logits: Any = None):
        self.velocity = jnp.zeros((B, SIDE, SIDE, 2)) if velocity is None else velocity
        self.logits = normal(1, B, L, V) if logits is None else logits
        self.branches: list[Any] = []

    def forward_branches(self, branches: Any, align_depth: int) -> list[Output]:
        self.branches, self.align_depth = branches, align_depth
        return [
            Output(
                velocity=self.velocity if heads.velocity else None,
                logits=self.logits if heads.logits else None,
                image_hidden=normal(2, B, 4, WIDTH) if heads.image_hidden else None,
                text_hidden=normal(3, B, L, WIDTH) if heads.text_hidden else None,
                mid_image=normal(4, B, WIDTH) if heads.mid_image else None,
                mid_image_tokens=normal(5, B, 4, WIDTH) if heads.mid_image_tokens else None,
                mid_text=normal(6, B, WIDTH) if heads.mid_text else None,
            )
            for _, heads in branches
        ]


def make_batch(**fields: Any) -> Batch:
    rng = np.random.default_rng(0)
    ids = rng.integers(2, MASK, (2, B, L)).astype(np.int32)
    batch = Batch(
        target=normal(7, B, SIDE, SIDE, 2),
        instruction_ids=ids[0],
        caption_ids=ids[1],
        image_features=normal(8, B, WIDTH),
        text_features=normal(9, B, WIDTH),
    )
    return batch.replace(**fields)


SOURCE = (normal(10, B, SIDE, SIDE, 2),)


def loss(
    batch: Batch | None = None,
    network: StandIn | None = None,
    *,
    task: str = "generate",
    seed: int = 0,
    step: int = 0,
    **switches: Any,
) -> tuple[float, objective.Report, StandIn]:
    """The loss of a batch, with the network that it asked."""
    config = ObjectiveConfig(**switches)
    batch, network = batch or make_batch(), network or StandIn()
    draws = objective.sample_draws(jax.random.key(seed), batch, config)
    total, report = objective.dual_stream_loss(
        network, encode, batch, draws, config, task=task, tokens=TOKENS, step=step
    )
    return float(total), report, network
