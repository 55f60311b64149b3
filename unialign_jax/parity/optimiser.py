"""Three optimiser steps of the reference, from recorded draws (`losses/train3*`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import optax

from unialign_jax.convert import names
from unialign_jax.parity.golden import Row, compare
from unialign_jax.training.optimizer import OptimizerConfig, make_optimizer

if TYPE_CHECKING:
    from unialign_jax.parity.losses import TrainingStep

CASE = "losses/train3"
# Adam divides by the gradient's size: where that is near its eps, float32 noise grows. Two
# measures: the worst element against the learning rate, and the whole update against its norm.
ELEMENT_SHARE_OF_RATE = 0.05
UPDATE_TOLERANCE = 1e-3


def verify(step: TrainingStep) -> None:
    """Repeats the recorded steps and compares losses, norms, rates and the final parameters."""
    from unialign_jax.parity.losses import TERM_NAMES, read_batch, read_draws

    goldens = step.goldens
    files = ("losses/train3.json", "losses/train3_draws.npz", "losses/train3_params.safetensors")
    if not goldens.lists(*files):
        return
    record = goldens.json("losses/train3.json")
    batch = read_batch(goldens.open("losses/total_loss_gen.npz"))
    draws = goldens.open("losses/train3_draws.npz")
    tx, schedule = make_optimizer(
        OptimizerConfig(
            learning_rate=record["lr"],
            warmup_steps=record["warmup_steps"],
            weight_decay=record["weight_decay"],
            b1=record["betas"][0],
            b2=record["betas"][1],
            eps=record["eps"],
            clip=record["grad_clip"],
        )
    )

    @jax.jit
    def update(params: Any, state: Any, draw: Any) -> Any:
        def loss(p: Any) -> Any:
            total, report = step.loss(p, batch, draw, "generate")
            return total, report.terms

        (total, terms), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, total, terms, optax.tree.norm(grads)

    params = jax.tree.map(jax.numpy.asarray, step.network.params)
    state = tx.init(params)
    for i, expected in enumerate(record["steps"]):
        rate = schedule(i)
        params, state, total, terms, norm = update(params, state, read_draws(draws, f"step{i}_"))
        ours = {"total": total, "grad_norm": norm, "lr": rate}
        ours |= {name: terms[term] for name, term in TERM_NAMES.items()}
        for key, value in expected.items():
            tolerance = 1e-4 if key == "grad_norm" else 1e-5
            goldens.add(compare(CASE, f"step{i}.{key}", ours.get(key), value, tolerance))
    _compare_parameters(step, params, record["lr"])


def _compare_parameters(step: TrainingStep, params: Any, rate: float) -> None:
    file = step.goldens.open("losses/train3_params.safetensors")
    config = step.network.config
    start = names.transformer_to_torch(step.network.params, config)
    ours = names.transformer_to_torch(params, config)
    for key, expected in file.all().items():
        if key not in ours:
            step.goldens.add(compare(CASE, key, None, expected, 0.0))
            continue
        error = ours[key] - expected
        worst = float(np.max(np.abs(error)))
        moved = float(np.linalg.norm(expected - start[key]))
        # What the reference left as it was, ours must not have touched either.
        still = np.inf if worst else 0.0
        share = float(np.linalg.norm(error)) / moved if moved else still
        ok = share <= UPDATE_TOLERANCE and worst <= ELEMENT_SHARE_OF_RATE * rate
        step.goldens.add(Row(CASE, key, worst, share, UPDATE_TOLERANCE, ok))
