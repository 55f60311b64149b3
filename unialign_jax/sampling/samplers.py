"""Compiled sampling loops: Euler on the image flow, ancestral decoding of masked text.

Each loop is one `lax.scan`, to be called inside `jax.jit`. Randomness is an argument.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from unialign_jax.diffusion import flow, masked
from unialign_jax.models.mmdit import Branch, Heads, MMDiT

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

    EncodeText = Callable[[Int[Array, "B L"]], Float[Array, "B L E"]]

TEXT_END_TIME = 1e-5


@flax.struct.dataclass
class FlowTrace:
    """Every step of an image run.

    Attributes:
      latents: [steps + 1, B, H, W, C], the start first.
      velocities: [steps, B, H, W, C], guided.
    """

    latents: Any
    velocities: Any


@flax.struct.dataclass
class TextTrace:
    """Every step of a text run.

    Attributes:
      tokens: int32 [steps, B, L] after each step.
      reused: bool [steps], whether the step reused the last prediction.
      first_log_probs: [B, L, V] of the first step.
      final_log_probs: [B, L, V] of the last pass.
      first_weights: [B, L, V], the weights that the first step drew from.
      last_weights: the same of the last step.
    """

    tokens: Any
    reused: Any
    first_log_probs: Any
    final_log_probs: Any
    first_weights: Any
    last_weights: Any


def sample_image(
    transformer: MMDiT,
    start: Float[Array, "B H W C"],
    prompt: Float[Array, "B L E"],
    negative: Float[Array, "B L E"] | None = None,
    conditions: tuple[Float[Array, "B H W C"], ...] = (),
    *,
    sigmas: np.ndarray | Float[Array, " S"],
    guidance: float | Float[Array, ""] = 7.0,
) -> tuple[Float[Array, "B H W C"], FlowTrace]:
    """Integrates the flow from noise to images.

    Args:
      transformer: the network.
      start: noise at the first level.
      prompt: text embeddings.
      negative: embeddings to be guided away from; needed when `guidance` is above 1.
      conditions: condition images; they stay in both halves of the guided batch.
      sigmas: levels from `flow.sampling_sigmas`, [steps + 1].
      guidance: scale of classifier-free guidance; 1 or less runs one plain pass per step. A traced
        scale guides where `negative` is given, so that one program serves every scale above 1.

    Returns:
      The images, float32, and the trace; what is not read of the trace costs nothing under jit.

    Raises:
      ValueError: guidance above 1 without `negative`.
    """
    guided = negative is not None if isinstance(guidance, jax.Array) else guidance > 1
    text = prompt
    if guided:
        if negative is None:
            raise ValueError("guidance above 1 needs the embeddings of a negative prompt")
        text = jnp.concatenate([negative, prompt])
    copies = 2 if guided else 1
    conditions = tuple(jnp.concatenate([c] * copies) for c in conditions)
    levels = jnp.asarray(sigmas, jnp.float32)

    def velocity(x: Any, sigma: Any) -> Any:
        timestep = jnp.full((copies * x.shape[0],), sigma * flow.TRAINING_LEVELS)
        branch = Branch(text, timestep, jnp.concatenate([x] * copies), conditions)
        v = transformer(branch, Heads(velocity=True)).velocity
        if not guided:
            return v
        unconditional, conditional = jnp.split(v, 2)
        return flow.guide(unconditional, conditional, guidance)

    def body(x: Any, level: Any) -> tuple[Any, Any]:
        sigma, sigma_next = level
        v = velocity(x, sigma)
        x = flow.euler_step(x, v, sigma, sigma_next)
        return x, (x, v)

    final, (latents, velocities) = jax.lax.scan(
        body, start.astype(jnp.float32), (levels[:-1], levels[1:])
    )
    return final, FlowTrace(jnp.concatenate([start[None], latents]), velocities)


def sample_text(
    transformer: MMDiT,
    encode_text: EncodeText,
    latents: Float[Array, "B H W C"] | None,
    tokens: Int[Array, "B L"],
    uniform: Callable[[Any], Float[Array, "B L V"]],
    *,
    steps: int,
    mask_id: int,
    cache: bool = True,
    temperature: float = 1.0,
) -> tuple[Int[Array, "B L"], TextTrace]:
    """Fills in the masked tokens of a text about an image.

    Ancestral sampling of masked diffusion (arXiv 2406.07524), the network always at timestep 0.
    A last pass takes the most probable token wherever the mask is left.

    Args:
      transformer: the network.
      encode_text: token ids -> text embeddings.
      latents: the image, or None for text alone.
      tokens: int32; `mask_id` where a token is wanted, anything else is given and stays.
      uniform: step index -> uniforms in [0, 1), for the Gumbel draws.
      steps: number of steps.
      mask_id: index of the mask token.
      cache: reuses the prediction while no token of the batch has changed, which is exact, as time
        does not enter the network; the reference's `ddpm_cache`. Without it the schedule's
        (1 - eps) factor stays, as in the reference's `ddpm`; both draw the same tokens.
      temperature: divides the logits of every draw; 0 takes the most probable token. Which
        positions are filled when stays random.

    Returns:
      int32 [B, L] and the trace.
    """
    dt = (1 - TEXT_END_TIME) / steps
    scale = 1.0 if cache else 1 - masked.EPS
    times = jnp.linspace(1.0, TEXT_END_TIME, steps + 1)
    zeros = jnp.zeros(tokens.shape[0])

    def predict(tokens: Any) -> Any:
        branch = Branch(encode_text(tokens), zeros, latents)
        logits = transformer(branch, Heads(logits=True)).logits
        return masked.temper(masked.substitute(logits, tokens, mask_id), temperature)

    def body(carry: Any, step: Any) -> tuple[Any, Any]:
        tokens, log_probs, valid = carry
        log_probs = jax.lax.cond(valid, lambda: log_probs, lambda: predict(tokens))
        t = times[step]
        filled, _ = masked.reverse_step(
            tokens, jnp.exp(log_probs), uniform(step), scale * t, scale * (t - dt), mask_id
        )
        still = cache & jnp.all(filled == tokens)
        return (filled, log_probs, still), (filled, valid)

    first = predict(tokens)
    (tokens_end, log_probs, valid), (history, reused) = jax.lax.scan(
        body, (tokens, first, jnp.asarray(True)), jnp.arange(steps)
    )
    final = jax.lax.cond(valid, lambda: log_probs, lambda: predict(tokens_end))
    filled = jnp.where(tokens_end == mask_id, jnp.argmax(final, axis=-1), tokens_end)

    def weights(log_probs: Any, step: int) -> Any:
        t = times[step]
        return masked.posterior(jnp.exp(log_probs), scale * t, scale * (t - dt), mask_id)

    trace = TextTrace(
        tokens=history,
        reused=reused.at[0].set(False),
        first_log_probs=first,
        final_log_probs=final,
        first_weights=weights(first, 0),
        last_weights=weights(log_probs, steps - 1),
    )
    return filled.astype(jnp.int32), trace


def uniform_from_key(
    key: jax.Array, shape: tuple[int, int, int]
) -> Callable[[Any], Float[Array, "B L V"]]:
    """Draws for `sample_text`: step s uses fold_in(key, s)."""
    return lambda step: jax.random.uniform(jax.random.fold_in(key, step), shape)
