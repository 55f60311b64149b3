"""One training step: draws, loss, gradient over micro-batches, update, moving average."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from unialign_jax.models.functional import Functional
from unialign_jax.models.latents import Latents
from unialign_jax.objective import Batch, Draws, TextTokens, dual_stream_loss, sample_draws
from unialign_jax.objective_config import ObjectiveConfig
from unialign_jax.training.gradients import Place, Spread, gradients
from unialign_jax.training.state import TrainState, trainable

Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]

# What a step's key is folded with for the draws of latents; the loss folds with small numbers.
_IMAGE_DRAWS = 1 << 16


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """What a step needs beside the models.

    Attributes:
      objective: weights and switches of the loss.
      tokens: mask, end and null ids.
      seed: of the run; step s draws from fold_in(key(seed), s).
      micro_batches: pieces into which the batch is cut, their gradients accumulated.
      train_text_encoder: whether the text encoder learns too.
      latents: what the pixels of a batch become.
      ema_decay: of the moving average; 0 keeps none.
      ema_warmup: whether the decay grows as (1 + step) / (10 + step) up to `ema_decay`.
    """

    objective: ObjectiveConfig
    tokens: TextTokens
    seed: int = 0
    micro_batches: int = 1
    train_text_encoder: bool = False
    latents: Latents = dataclasses.field(default_factory=Latents)
    ema_decay: float = 0.0
    ema_warmup: bool = True


def make_train_step(
    transformer: Functional,
    text_encoder: Functional,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: StepConfig,
    *,
    task: str,
    spread: Spread | None = None,
) -> Step:
    """Builds the step for one task, ready for `jax.jit` with the state donated.

    Args:
      transformer: the network; its parameters are `state.params["transformer"]`.
      text_encoder: ids -> embeddings; `state.params["text_encoder"]`.
      tx: the optimiser, over the trainable part of the parameters.
      schedule: learning rate by step, for the log.
      config: see `StepConfig`.
      task: one of `objective.TRAINING_TASKS`.
      spread: how the parameters lie on a mesh of several devices; None for one device.

    Returns:
      (state, batch) -> (state, metrics). `batch.target` and `batch.conditions` may be uint8
      pixels, which become latents. Metrics are float32 scalars: `loss`, `loss/TERM` for each term
      that has its inputs, `grad_norm` (before clipping) and `lr`.
    """

    def loss(
        part: Any, frozen: Any, batch: Batch, draws: Draws, step: Any, place: Place
    ) -> tuple[Any, Any]:
        params = {**frozen, **part}
        network, stored = place.bind("transformer", transformer, params["transformer"])
        encoder, of_text = place.bind("text_encoder", text_encoder, params["text_encoder"])

        def encode(ids: Any) -> Any:
            # The name finds it again in profiles, and in `unialign plan`.
            with jax.named_scope("text_encoder"):
                embeds = encoder(ids, **of_text)
            return embeds if config.train_text_encoder else jax.lax.stop_gradient(embeds)

        total, report = dual_stream_loss(
            network,
            encode,
            batch,
            draws,
            config.objective,
            task=task,
            tokens=config.tokens,
            step=step,
            rows=place.rows,
            **stored,
        )
        return total, report.terms

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        batch = _with_latents(config.latents, state.params, batch, key)
        part: Any = trainable(state.params, train_text_encoder=config.train_text_encoder)
        total, terms, grads = gradients(
            loss,
            part,
            state.params,
            batch,
            key,
            state.step,
            draw=lambda key, piece: sample_draws(key, piece, config.objective),
            micro_batches=config.micro_batches,
            mean=config.objective.accumulate == "mean",
            spread=spread,
        )
        updates, opt_state = tx.update(grads, state.opt_state, part)
        part = optax.apply_updates(part, updates)
        metrics = {"loss": total} | {f"loss/{name}": value for name, value in terms.items()}
        metrics["grad_norm"] = optax.tree.norm(grads)
        metrics["lr"] = jnp.asarray(schedule(state.step), jnp.float32)
        ema = None if state.ema is None else _averaged(state.ema, part, state.step, config)
        done = TrainState(state.step + 1, {**state.params, **part}, opt_state, ema)
        return done, metrics

    return step


def _with_latents(space: Latents, params: Any, batch: Batch, key: Any) -> Batch:
    """The batch with latents in place of pixels, drawn as the reference draws them."""

    def encode(images: Any, use: int) -> Any:
        noise = None
        if space.autoencoder is not None and images.dtype == jnp.uint8:
            sides = (side // space.factor for side in images.shape[1:3])
            shape = (images.shape[0], *sides, space.channels)
            noise = jax.random.normal(jax.random.fold_in(key, _IMAGE_DRAWS + use), shape)
        return space.encode(params, images, noise)

    conditions = tuple(encode(images, 1 + i) for i, images in enumerate(batch.conditions))
    return dataclasses.replace(batch, target=encode(batch.target, 0), conditions=conditions)


def _averaged(ema: Any, part: Any, step: Any, config: StepConfig) -> Any:
    decay = jnp.float32(config.ema_decay)
    if config.ema_warmup:
        count = step.astype(jnp.float32)
        decay = jnp.minimum(decay, (1 + count) / (10 + count))
    return jax.tree.map(lambda a, p: a + (1 - decay) * (p - a), ema, part)
