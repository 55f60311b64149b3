"""Rectified flow on images: noise levels, timestep densities, weightings, the Euler step.

x_sigma = (1 - sigma) x + sigma noise; the network predicts the velocity v = noise - x. Timesteps
are 1000 sigma. No networks here. Sources: Stable Diffusion 3 (arXiv 2403.03206) and the scheduler
that the reference uses (diffusers 0.31, FlowMatchEulerDiscreteScheduler).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

TRAINING_LEVELS = 1000
DENSITIES = ("logit_normal", "mode", "uniform")
WEIGHTINGS = ("x0", "velocity", "cosmap")
TABLES = ("double_shifted", "plain")


def shift_sigma(sigma: Any, shift: Any) -> Any:
    """Moves noise levels towards noise, of any shape: shift sigma / (1 + (shift - 1) sigma)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def training_sigmas(shift: float = 1.0) -> np.ndarray:
    """The 1000 noise levels of training, descending from 1, float32.

    Args:
      shift: resolution-dependent shift (arXiv 2403.03206, section 5.3.2); the reference trains
        with 1, which is none.
    """
    levels = np.arange(TRAINING_LEVELS, 0, -1, dtype=np.float32) / np.float32(TRAINING_LEVELS)
    return shift_sigma(levels, np.float32(shift)).astype(np.float32)


def sampling_sigmas(steps: int, shift: float = 3.0, table: str = "double_shifted") -> np.ndarray:
    """The noise levels of a sampling run, descending, float32 [steps + 1], the last one 0.

    Args:
      steps: number of Euler steps, at least 1.
      shift: the shift; 3 for Stable Diffusion 3 and the reference.
      table: "double_shifted" is the reference's: its end point, the smallest training level, is
        already shifted when the whole line is shifted again. "plain" shifts an even line from 1
        to 0 once.

    Raises:
      ValueError: fewer than one step or an unknown table.
    """
    if steps < 1:
        raise ValueError(f"sampling needs at least 1 step, not {steps}")
    if table == "plain":
        return shift_sigma(np.linspace(1.0, 0.0, steps + 1), shift).astype(np.float32)
    if table != "double_shifted":
        raise ValueError(f"unknown table {table!r}; one of {', '.join(TABLES)}")
    levels = training_sigmas(shift)
    line = np.linspace(
        float(levels[0]) * TRAINING_LEVELS, float(levels[-1]) * TRAINING_LEVELS, steps
    )
    return custom_sigmas(line / TRAINING_LEVELS, shift)


def custom_sigmas(sigmas: np.ndarray, shift: float) -> np.ndarray:
    """Shifts given levels and appends 0: float32 [n + 1]."""
    shifted = shift_sigma(np.asarray(sigmas, np.float64), shift).astype(np.float32)
    return np.append(shifted, np.float32(0))


def interpolate(x: Any, noise: Any, sigma: Float[Array, " B"]) -> Any:
    """(1 - sigma) x + sigma noise for x and noise [B, ...], one noise level per example."""
    sigma = expand(sigma, x.ndim)
    return sigma * noise + (1 - sigma) * x


def euler_step(
    x: Float[Array, "*N"], velocity: Float[Array, "*N"], sigma: Array, sigma_next: Array
) -> Float[Array, "*N"]:
    """One Euler step along the flow: x + (sigma_next - sigma) v, in float32."""
    return x.astype(jnp.float32) + (sigma_next - sigma) * velocity.astype(jnp.float32)


def guide(
    unconditional: Float[Array, "*N"], conditional: Float[Array, "*N"], scale: float | Array
) -> Float[Array, "*N"]:
    """Classifier-free guidance (arXiv 2207.12598): u + scale (c - u)."""
    return unconditional + scale * (conditional - unconditional)


def logit_normal(
    normal: Float[Array, " B"], mean: float = 0.0, std: float = 1.0
) -> Float[Array, " B"]:
    """sigmoid(mean + std z): the logit-normal density of Stable Diffusion 3."""
    return jax.nn.sigmoid(normal * std + mean)


def mode(uniform: Float[Array, " B"], scale: float = 1.29) -> Float[Array, " B"]:
    """1 - r - s (cos^2(pi r / 2) - 1 + r): the mode density of Stable Diffusion 3."""
    return 1 - uniform - scale * (jnp.cos(math.pi * uniform / 2) ** 2 - 1 + uniform)


def level_index(u: Float[Array, " B"]) -> Int[Array, " B"]:
    """floor(1000 u), an index into the descending table of `training_sigmas`."""
    index = jnp.floor(u * TRAINING_LEVELS).astype(jnp.int32)
    return jnp.clip(index, 0, TRAINING_LEVELS - 1)


def loss_weight(sigma: Float[Array, "*N"], weighting: str) -> Float[Array, "*N"]:
    """Weight of the squared error of x0 = x_sigma - sigma v at a noise level.

    Args:
      sigma: noise levels in (0, 1].
      weighting: "x0" is 1 (the reference); "velocity" is sigma^-2, which turns it into the squared
        error of v; "cosmap" is 2 / (pi (1 - 2 sigma + 2 sigma^2)).

    Raises:
      ValueError: an unknown weighting.
    """
    if weighting == "x0":
        return jnp.ones_like(sigma)
    if weighting == "velocity":
        return sigma**-2.0
    if weighting == "cosmap":
        return 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2))
    raise ValueError(f"unknown weighting {weighting!r}; one of {', '.join(WEIGHTINGS)}")


def expand(per_example: Float[Array, " B"], ndim: int) -> Array:
    """Adds trailing axes of size 1, so that a vector [B] broadcasts against `ndim` axes."""
    return per_example.reshape(per_example.shape + (1,) * (ndim - 1))
