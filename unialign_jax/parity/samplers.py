"""Group `samplers`: image trajectories and masked-text decoding, step by step."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unialign_jax.diffusion import flow, masked
from unialign_jax.models.mmdit import Branch, Heads
from unialign_jax.parity.golden import LOOSE, GoldenDirectory, GoldenFile, Row, compare
from unialign_jax.parity.text_encoder import StandInTextEncoder
from unialign_jax.parity.transformer import Network, nchw, nhwc
from unialign_jax.sampling.samplers import sample_image, sample_text

GROUP = "samplers"
# Below this relative gap between winner and runner-up, float32 noise may pick another token.
MARGIN = 1e-5


def verify(goldens: GoldenDirectory) -> None:
    """Compares every recorded run."""
    network, encoder = Network(goldens), StandInTextEncoder(goldens)
    index = goldens.json(f"{GROUP}/index.json")
    for name in goldens.files(f"{GROUP}/flow_", ".npz"):
        _verify_image_run(network, goldens.open(name))
    decode = _decoder(network, encoder)
    for name in goldens.files(f"{GROUP}/text_ddpm", ".npz"):
        case = name.split("/")[-1].removesuffix(".npz")
        _verify_text_run(network, decode, goldens.open(name), index["text"].get(case, {}))
    _verify_text_forward(network, encoder, goldens)


def _verify_image_run(network: Network, file: GoldenFile) -> None:
    conditions = []
    while f"in_cond_{len(conditions)}" in file:
        conditions.append(nhwc(file.get(f"in_cond_{len(conditions)}")))
    steps = file.arrays["timesteps"].shape[0]
    sigmas = flow.sampling_sigmas(steps, float(file.get("shift")))
    guidance = float(file.get("guidance"))

    @jax.jit
    def run(params: Any) -> Any:
        return sample_image(
            network.bind(params),
            nhwc(file.get("in_latents")),
            file.get("in_prompt_embeds"),
            file.get("in_negative_embeds"),
            tuple(conditions),
            sigmas=sigmas,
            guidance=guidance,
        )

    final, trace = run(network.params)
    velocities = nchw(trace.velocities)
    timesteps = sigmas[:-1] * flow.TRAINING_LEVELS
    for key, value in {
        "sigmas": sigmas,
        "timesteps": timesteps,
        "step_timesteps": timesteps,
        "latents_trajectory": nchw(trace.latents),
        "out_latents": nchw(final),
        "guided_velocity_first": velocities[0],
        "guided_velocity_last": velocities[-1],
    }.items():
        file.check(key, value, LOOSE if np.ndim(value) > 1 else 1e-6)


def _decoder(network: Network, encoder: StandInTextEncoder) -> Any:
    """One jitted decoder for all runs: runs of equal shapes share a program."""

    @functools.partial(jax.jit, static_argnums=(4, 5, 6))
    def decode(
        params: Any, latents: Any, tokens: Any, uniforms: Any, steps: int, mask_id: int, cache: bool
    ) -> Any:
        return sample_text(
            network.bind(params),
            encoder,
            latents,
            tokens,
            lambda step: uniforms[step],
            steps=steps,
            mask_id=mask_id,
            cache=cache,
        )

    return decode


def _verify_text_run(
    network: Network, decode: Any, file: GoldenFile, index: dict[str, Any]
) -> None:
    mask_id, steps = int(file.get("mask_index")), int(file.get("num_steps"))
    uniforms = jnp.asarray(file.get("uniforms"))
    prompt = file.get("prompt_tokens").astype(np.int32)
    tokens = np.full(uniforms.shape[1:3], mask_id, np.int32)
    tokens[:, : prompt.size] = prompt
    cache = "ddpm_cache" in file.case

    latents = nhwc(file.get("in_latents")) if "in_latents" in file else None
    out, trace = decode(network.params, latents, tokens, uniforms, steps, mask_id, cache)
    _check_tokens(file, "tokens_after_step", trace.tokens, index.get("min_relative_margin"))
    _check_tokens(file, "tokens_before_final", trace.tokens[-1], index.get("min_relative_margin"))
    gap = index.get("final_min_logprob_gap")
    margin = min(x for x in (index.get("min_relative_margin"), gap, 1.0) if x is not None)
    _check_tokens(file, "out_tokens", out, margin)
    file.check("cache_used", trace.reused)
    file.check("first_log_probs", trace.first_log_probs)
    file.check("final_log_probs", trace.final_log_probs)
    file.check("q_first", trace.first_weights)
    file.check("q_last", trace.last_weights)
    file.check("timesteps", np.linspace(1.0, 1e-5, steps + 1), 1e-6)
    file.check("dt", (1 - 1e-5) / steps, 1e-6)
    hits = int(np.sum(np.asarray(trace.reused)))
    left = int(np.sum(np.asarray(trace.tokens[-1]) == mask_id))
    ours = {
        "forward_calls": steps - hits + 1,
        "cache_hits": hits,
        "left_masked_for_final": left,
    }
    for key, value in ours.items():
        if key in index:
            file.directory.add(compare(file.case, f"index.{key}", value, index[key], 0.0))


def _check_tokens(file: GoldenFile, key: str, tokens: Any, margin: float | None) -> None:
    """Tokens must be equal unless the recorded margin is within float32 noise."""
    if margin is None or margin > MARGIN:
        file.check(key, tokens)
        return
    wrong = int(np.sum(np.asarray(tokens) != file.get(key)))
    note = f"margin {margin:.1e} is within float32 noise; {wrong} tokens differ"
    file.directory.add(Row(file.case, key, wrong, wrong, 0.0, True, note))


def _verify_text_forward(
    network: Network, encoder: StandInTextEncoder, goldens: GoldenDirectory
) -> None:
    name = f"{GROUP}/text_forward.npz"
    if not goldens.lists(name):
        return
    file = goldens.open(name)
    tokens = jnp.asarray(file.get("tokens").astype(np.int32))
    branch = Branch(encoder(tokens), jnp.zeros(tokens.shape[0]), nhwc(file.get("in_latents")))
    out = network.bind()(branch, Heads(logits=True))
    file.check("log_probs", masked.substitute(out.logits, tokens, int(file.get("mask_index"))))
