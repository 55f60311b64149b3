"""The losses that pull features together: cosine alignment and the contrastive loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from unialign_jax.parallel.rows import ALL_ROWS, Rows

if TYPE_CHECKING:
    from jaxtyping import Array, Float

TEMPERATURE = 0.07


def unit(x: Float[Array, "*B D"], eps: float) -> Float[Array, "*B D"]:
    """X / max(|x|, eps) over the last axis, float32, with a gradient of 0 at x = 0."""
    x = x.astype(jnp.float32)
    squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared, eps**2))


def cosine_loss(
    x: Float[Array, "*B D"],
    y: Float[Array, "*B D"],
    weight: Float[Array, "*B"] | None = None,
    rows: Rows = ALL_ROWS,
) -> Float[Array, ""]:
    """1 - the mean cosine similarity of rows, weighted by `weight` (all 1 unless given)."""
    cosine = jnp.sum(unit(x, 1e-8) * unit(y, 1e-8), axis=-1)
    return rows.weighted_mean(1 - cosine, weight)


def contrastive_loss(
    image: Float[Array, "B D"],
    text: Float[Array, "B D"],
    *,
    group: int = 0,
    temperature: float = TEMPERATURE,
    weight: Float[Array, " B"] | None = None,
    rows: Rows = ALL_ROWS,
) -> Float[Array, ""]:
    """Symmetric InfoNCE between matching rows of image and text features.

    Args:
      image: features of the image branch, not normalised.
      text: features of the text branch.
      group: rows that are each other's negatives; 0 is the whole batch (the reference: 4).
      temperature: of the logits.
      weight: 0 takes a row out, as positive and as negative.
      rows: where the batch lies. A group that reaches over devices has its features gathered, and
        each device contrasts its own rows with all.

    Returns:
      The mean of both directions' cross-entropies, float32.

    Raises:
      ValueError: the batch is no multiple of the group.
    """
    batch = image.shape[0] * rows.parts
    size = group or batch
    if batch % size:
        raise ValueError(f"contrastive_group {size} does not divide the batch {batch}")
    if image.shape[0] % size:
        u, w = unit(image, 1e-12), unit(text, 1e-12)
        return rows.weighted_mean(_across(u, w, size, temperature, weight, rows), weight)
    batch = image.shape[0]
    groups = (batch // size, size, -1)
    u = unit(image, 1e-12).reshape(groups)
    w = unit(text, 1e-12).reshape(groups)
    logits = jnp.einsum("gid,gjd->gij", u, w) / temperature
    if weight is not None:
        present = weight.reshape(batch // size, size) > 0
        logits = jnp.where(present[:, :, None] & present[:, None, :], logits, -1e9)
    diagonal = jnp.diagonal(logits, axis1=1, axis2=2)
    both = (jax.nn.logsumexp(logits, axis=1) + jax.nn.logsumexp(logits, axis=2)) / 2 - diagonal
    return rows.weighted_mean(both.reshape(batch), weight)


def _across(
    u: Float[Array, "B D"],
    w: Float[Array, "B D"],
    size: int,
    temperature: float,
    weight: Float[Array, " B"] | None,
    rows: Rows,
) -> Float[Array, " B"]:
    """Both directions' mean cross-entropy of this device's rows, in groups over devices."""
    mine = rows.indices(u.shape[0])
    everyone = jnp.arange(u.shape[0] * rows.parts)
    allowed = mine[:, None] // size == everyone[None] // size
    if weight is not None:
        present = weight > 0
        allowed &= present[:, None] & rows.gather(present)[None]

    def entropy(x: Any, others: Any) -> Any:
        logits = jnp.einsum("id,jd->ij", x, others) / temperature
        return jax.nn.logsumexp(jnp.where(allowed, logits, -1e9), axis=1)

    positive = jnp.sum(u * w, axis=-1) / temperature
    if weight is not None:
        positive = jnp.where(weight > 0, positive, -1e9)
    return (entropy(u, rows.gather(w)) + entropy(w, rows.gather(u))) / 2 - positive


@jax.custom_vjp
def normalise_gradient(x: Float[Array, "*N"]) -> Float[Array, "*N"]:
    """The identity; its backward pass divides the gradient by (its L2 norm + 1e-8)."""
    return x


def _forward(x: Array) -> tuple[Array, None]:
    return x, None


def _backward(_: None, upstream: Array) -> tuple[Array]:
    return (upstream / (jnp.sqrt(jnp.sum(jnp.square(upstream))) + 1e-8),)


normalise_gradient.defvjp(_forward, _backward)
