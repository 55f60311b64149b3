"""What a training run carries from step to step."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class TrainState:
    """Everything that a step reads and writes; every leaf is an array.

    Attributes:
      step: int32 scalar, the number of steps done.
      params: {"transformer": ..., "text_encoder": ...} and, where pixels are not the latents,
        "vae", which is never trained; nested dicts of float32 arrays.
      opt_state: state of the optax transformation over the trainable part of `params`.
      ema: float32 moving average of the trainable part, or None.
    """

    step: Any
    params: dict[str, Any]
    opt_state: Any
    ema: Any = None


def trainable(params: dict[str, Any], *, train_text_encoder: bool) -> dict[str, Any]:
    """The part of the parameters that the optimiser updates."""
    names = ("transformer", "text_encoder") if train_text_encoder else ("transformer",)
    return {name: params[name] for name in names}


def create(
    params: dict[str, Any],
    tx: optax.GradientTransformation,
    *,
    train_text_encoder: bool,
    with_ema: bool,
) -> TrainState:
    """Returns the state of a run that has not begun."""
    part = trainable(params, train_text_encoder=train_text_encoder)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(part),
        ema=part if with_ema else None,
    )
