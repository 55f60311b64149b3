"""AdamW (or Muon) with global-norm clipping, linear warm-up and frozen parameters.

The recipe is that of the PyTorch reference (learning rate 3e-5, decay 0.01 on every parameter,
clip 2.0, 2000 warm-up steps of which the first has rate 0), with each part a field.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

if TYPE_CHECKING:
    from jaxtyping import Array, Float


ALGORITHMS = ("adamw", "muon")


@dataclass(frozen=True)
class OptimizerConfig:
    """Fields of the optimiser.

    Attributes:
        learning_rate: the peak rate.
        warmup_steps: step s has rate `learning_rate * min(1, s / warmup_steps)`; 0 for none.
        decay_steps: the step, warm-up included, at which a cosine decay reaches 0; 0 keeps the
            rate constant after the warm-up.
        weight_decay: decoupled decay of every trained parameter, biases included.
        b1, b2, eps: Adam's.
        algorithm: "adamw" (the reference), or "muon" (arXiv 2502.16982): the matrices inside the
            blocks are updated along their orthogonalised momentum, all else by AdamW.
        muon_rate: peak rate of those matrices with "muon"; it follows the same schedule.
        clip: the largest global norm of a gradient; 0 for no clipping.
        clip_scale: multiplies the norm before it is compared with `clip`. The reference sums the
            gradients of its 12 micro-batches; 12 clips their mean in the same way.
        freeze: parts of parameter paths (`transformer/null_image`). A parameter whose path
            contains one of them gets no gradient, no decay and no moments. The reference never
            trains its null image tokens.
    """

    learning_rate: float = 3e-5
    warmup_steps: int = 2000
    decay_steps: int = 0
    weight_decay: float = 1e-2
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    algorithm: str = "adamw"
    muon_rate: float = 0.02
    clip: float = 2.0
    clip_scale: float = 1.0
    freeze: tuple[str, ...] = ("null_image",)

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm is {self.algorithm!r}; one of {', '.join(ALGORITHMS)}")
        if self.decay_steps and self.decay_steps <= self.warmup_steps:
            raise ValueError(
                f"decay_steps={self.decay_steps} must exceed warmup_steps={self.warmup_steps}"
            )
        if self.learning_rate < 0 or self.weight_decay < 0 or self.warmup_steps < 0:
            raise ValueError("learning_rate, weight_decay and warmup_steps must be at least 0")
        if self.clip < 0 or self.clip_scale <= 0:
            raise ValueError("clip must be at least 0 and clip_scale above 0")


def learning_rate_schedule(config: OptimizerConfig) -> optax.Schedule:
    """The learning rate, float32, as a function of the number of finished updates."""

    def schedule(count: Any) -> Float[Array, ""]:
        step = jnp.asarray(count, jnp.float32)
        rate = jnp.float32(config.learning_rate)
        if config.warmup_steps:
            rate = rate * jnp.minimum(1.0, step / config.warmup_steps)
        if config.decay_steps:
            span = config.decay_steps - config.warmup_steps
            progress = jnp.clip((step - config.warmup_steps) / span, 0.0, 1.0)
            rate = rate * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        return rate

    return schedule


def trainable(params: Any, freeze: tuple[str, ...]) -> Any:
    """A tree of bools in the structure of `params`: False where the path contains a frozen part."""

    def is_trained(path: tuple, _: Any) -> bool:
        name = "/".join(str(getattr(key, "key", key)) for key in path)
        return not any(part in name for part in freeze)

    return jax.tree_util.tree_map_with_path(is_trained, params)


def make_optimizer(config: OptimizerConfig) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimiser and its learning-rate schedule (for the log).

    The gradient is scaled by `clip / (clip_scale * norm)` where that is below 1, the norm being
    that of the trained parameters. AdamW follows torch.optim.AdamW: the bias-corrected moments,
    `eps` outside the root, and a decay of `rate * weight_decay` times the parameter.
    """
    schedule = learning_rate_schedule(config)
    update = optax.adamw(
        schedule, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay
    )
    if config.algorithm == "muon":
        muon = optax.contrib.muon(
            learning_rate_schedule(dataclasses.replace(config, learning_rate=config.muon_rate)),
            weight_decay=config.weight_decay,
            muon_weight_dimension_numbers=_axes,
        )
        update = optax.partition({"matrix": muon, "rest": update}, _matrix_or_rest)
    limit = config.clip / config.clip_scale
    clip = optax.clip_by_global_norm(limit) if config.clip else optax.identity()

    def labels(params: Any) -> Any:
        mask = trainable(params, config.freeze)
        return jax.tree.map(lambda trained: "trained" if trained else "frozen", mask)

    tx = optax.partition(
        {"trained": optax.chain(clip, update), "frozen": optax.set_to_zero()}, labels
    )
    return tx, schedule


def _matrix(path: tuple, x: Any) -> optax.contrib.MuonDimensionNumbers | None:
    """Which axes of a parameter form the matrix that Muon orthogonalises; None for AdamW's.

    Matrices are the kernels inside the blocks, [layers, in, out...]; the queries, keys and values
    of a kernel [layers, in, 3, heads, kv] are matrices of their own.
    """
    name = "/".join(str(getattr(key, "key", key)) for key in path)
    if "blocks/" not in name or "modulation" in name or not name.endswith("kernel"):
        return None
    outputs = (3, 4) if x.ndim == 5 else tuple(range(2, x.ndim))
    return optax.contrib.MuonDimensionNumbers((1,), outputs)


def _axes(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(_matrix, params)


def _matrix_or_rest(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, x: "rest" if _matrix(path, x) is None else "matrix", params
    )
