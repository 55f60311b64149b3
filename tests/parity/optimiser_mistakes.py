"""Deliberate mistakes in the optimiser."""

from __future__ import annotations

import jax
import optax

from tests.parity.mistakes import Patch, around, mistake
from unialign_jax.training import optimizer

WEIGHT = "transformer_blocks.1.attn.to_q.weight"


@mistake("optimiser", WEIGHT)
def weights_do_not_decay(patch: Patch) -> None:
    around(patch, optax, "adamw", lambda f, *a, **k: f(*a, **{**k, "weight_decay": 0.0}))


@mistake("optimiser", WEIGHT)
def decay_goes_through_the_moments(patch: Patch) -> None:
    def coupled(f, rate, *, weight_decay, **k):
        return optax.chain(optax.add_decayed_weights(weight_decay), optax.adam(rate, **k))

    around(patch, optax, "adamw", coupled)


@mistake("optimiser", "context_embedder.bias")
def biases_do_not_decay(patch: Patch) -> None:
    def masked_decay(f, *a, **k):
        return f(*a, **k, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p))

    around(patch, optax, "adamw", masked_decay)


@mistake("optimiser", "step0.lr")
def warm_up_starts_a_step_too_late(patch: Patch) -> None:
    def later(f, config):
        return lambda step: f(config)(step + 1)

    around(patch, optimizer, "learning_rate_schedule", later)


@mistake("optimiser", WEIGHT)
def gradient_is_not_clipped(patch: Patch) -> None:
    around(patch, optax, "clip_by_global_norm", lambda f, norm: optax.identity())


@mistake("optimiser", WEIGHT)
def every_element_is_clipped(patch: Patch) -> None:
    around(patch, optax, "clip_by_global_norm", lambda f, norm: optax.clip(norm))


@mistake("optimiser", "null_image_embd")
def null_image_decays_without_a_gradient(patch: Patch) -> None:
    around(patch, optimizer, "trainable", lambda f, params, freeze: f(params, ()))


@mistake("optimiser", WEIGHT)
def moments_are_not_corrected_for_their_start(patch: Patch) -> None:
    def uncorrected(f, rate, *, b1, b2, eps, weight_decay):
        return optax.chain(
            optax.scale_by_adam(b1, b2, eps),
            optax.scale(1 - b1),
            optax.add_decayed_weights(weight_decay),
            optax.scale_by_learning_rate(rate),
        )

    around(patch, optax, "adamw", uncorrected)
