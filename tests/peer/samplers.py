"""Both samplers and the scheduler's tables in NumPy and PyTorch, every draw an argument."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tests.peer.losses import EPS, StandInEncoder, substitute, train_table
from unialign_jax.convert.torch_layers import time_sincos
from unialign_jax.convert.torch_model import Transformer

TINY = 1e-10


def shifted(sigmas: np.ndarray, shift: float) -> np.ndarray:
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def sampling_table(shift: float, steps: int | None = None, custom: np.ndarray | None = None):
    """float32 sigmas (steps + 1, last 0) and timesteps (steps), or of `custom` sigmas."""
    if custom is None:
        ends = train_table(shift)[0].numpy().astype(np.float64)
        sigmas = np.linspace(ends[0] * 1000, ends[-1] * 1000, steps) / 1000
    else:
        sigmas = custom
    sigmas = shifted(sigmas, shift).astype(np.float32)
    return np.append(sigmas, np.float32(0)), sigmas * np.float32(1000)


@torch.no_grad()
def flow_trajectory(
    model: Transformer,
    latents: Tensor,
    prompt: Tensor,
    negative: Tensor,
    conditions: list[Tensor],
    guidance: float,
    shift: float,
    steps: int,
) -> dict[str, np.ndarray]:
    """Euler steps from noise; every key that a flow golden has beside its inputs."""
    sigmas, timesteps = sampling_table(shift, steps)
    x, states, velocities = latents, [latents], []
    for i, timestep in enumerate(timesteps):
        time = torch.full((len(x),), float(timestep))
        # float32 also where the model is float64: the features' own rounding is not of interest.
        features = time_sincos(time).to(x.dtype)
        if guidance > 1:
            text, image = torch.cat([negative, prompt]), torch.cat([x, x])
            doubled = [torch.cat([c, c]) for c in conditions]
            both = model(text, time.repeat(2), image, doubled, sincos=features.repeat(2, 1))[0]
            low, high = both.chunk(2)
            velocity = low + guidance * (high - low)
        else:
            velocity = model(prompt, time, x, conditions, sincos=features)[0]
        x = x + (float(sigmas[i + 1]) - float(sigmas[i])) * velocity
        states.append(x)
        velocities.append(velocity)
    return {
        "guidance": np.float32(guidance),
        "shift": np.float32(shift),
        "sigmas": sigmas,
        "timesteps": timesteps,
        "step_timesteps": timesteps,
        "latents_trajectory": torch.stack(states).numpy(),
        "out_latents": x.numpy(),
        "guided_velocity_first": velocities[0].numpy(),
        "guided_velocity_last": velocities[-1].numpy(),
    }


def margin(scores: Tensor) -> Tensor:
    """Relative gap between the winner and the runner-up of the last axis."""
    top = scores.topk(2, dim=-1).values
    return (top[..., 0] - top[..., 1]) / top[..., 0]


@torch.no_grad()
def text_log_probs(
    model: Transformer, encoder: StandInEncoder, latents: Tensor, tokens: Tensor
) -> Tensor:
    time = torch.zeros(len(tokens), dtype=latents.dtype)
    logits = model(encoder(tokens), time, latents)[1]
    return substitute(logits, tokens, model.sizes.mask_id)


@torch.no_grad()
def text_trajectory(
    model: Transformer,
    encoder: StandInEncoder,
    latents: Tensor,
    prompt: Tensor,
    uniforms: Tensor,
    cached: bool,
) -> tuple[dict[str, np.ndarray], dict]:
    """Masked-diffusion decoding; returns a text golden's arrays and its line of the index."""
    mask_id = model.sizes.mask_id
    steps, batch, length, _ = uniforms.shape
    times = torch.linspace(1, 1e-5, steps + 1)
    dt = (1 - 1e-5) / steps
    tokens = torch.full((batch, length), mask_id)
    tokens[:, : len(prompt)] = prompt
    probs, calls, margins, qs, after, used = None, 0, [], [], [], []
    first = None
    for t, uniform in zip(times[:-1], uniforms, strict=True):
        used.append(cached and probs is not None)
        if not used[-1]:
            log_probs = text_log_probs(model, encoder, latents, tokens)
            calls += 1
            first = log_probs if first is None else first
            probs = log_probs.exp()
        scale = 1 if cached else 1 - EPS
        q = probs * (scale * t - scale * (t - dt))
        q[..., mask_id] = scale * (t - dt)
        score = q / (TINY - torch.log(uniform + TINY))
        open_ = tokens == mask_id
        if open_.any():
            margins.append(float(margin(score[open_]).min()))
        drawn = torch.where(open_, score.argmax(-1), tokens)
        if not torch.equal(drawn, tokens):
            probs = None
        tokens = drawn
        qs.append(q)
        after.append(tokens)
    final = text_log_probs(model, encoder, latents, tokens)
    left = tokens == mask_id
    gaps = final[left].topk(2, dim=-1).values
    arrays = {
        "tokens_after_step": torch.stack(after),
        "cache_used": torch.tensor(used),
        "tokens_before_final": tokens,
        "first_log_probs": first,
        "final_log_probs": final,
        "q_first": qs[0],
        "q_last": qs[-1],
        "out_tokens": final.argmax(-1),
        "timesteps": times,
        "dt": torch.tensor(dt),
        "mask_index": torch.tensor(mask_id),
        "num_steps": torch.tensor(steps),
    }
    index = {
        "forward_calls": calls + 1,
        "cache_hits": sum(used),
        "min_relative_margin": min(margins),
        "final_min_logprob_gap": float((gaps[:, 0] - gaps[:, 1]).min()) if left.any() else None,
        "left_masked_for_final": int(left.sum()),
    }
    return {name: array.numpy() for name, array in arrays.items()}, index
