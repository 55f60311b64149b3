"""Group `e2e`: the whole pipeline, from ids and pictures to pictures and tokens."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from unialign_jax.diffusion import flow
from unialign_jax.parity.autoencoder import GoldenAutoencoder
from unialign_jax.parity.golden import LOOSE, GoldenDirectory, GoldenFile, compare
from unialign_jax.parity.t5 import golden_t5
from unialign_jax.parity.transformer import Network, check_positions, nchw, nhwc
from unialign_jax.sampling.samplers import sample_image, sample_text

GROUP = "e2e"
RESULTS = f"{GROUP}/pipeline_io.npz"


class GoldenPipeline:
    """The golden components, and the settings of the recorded runs."""

    def __init__(self, goldens: GoldenDirectory):
        self.index = goldens.json(f"{GROUP}/index.json")
        self.network = Network(goldens, f"{GROUP}/transformer")
        self.encode_text = golden_t5(goldens, self.index["t5"])
        self.autoencoder = GoldenAutoencoder(goldens, self.index["vae"])


def verify(goldens: GoldenDirectory) -> None:
    """Compares every image task and every text task."""
    if not goldens.lists(RESULTS):
        return
    pipeline, file = GoldenPipeline(goldens), goldens.open(RESULTS)
    check_positions(goldens, pipeline.network, f"{GROUP}/transformer")
    for key in file.arrays:
        if key.endswith("_in_latents"):
            _verify_image_task(pipeline, file, key.removesuffix("_in_latents"))
        elif key.endswith("_uniforms"):
            _verify_text_task(pipeline, file, key.removesuffix("_uniforms"))


def _verify_image_task(pipeline: GoldenPipeline, file: GoldenFile, task: str) -> None:
    prompt, negative = (
        pipeline.encode_text(file.get(f"{task}_{which}_ids").astype(np.int32))
        for which in ("prompt", "negative")
    )
    file.check(f"{task}_prompt_embeds", prompt)
    file.check(f"{task}_negative_embeds", negative)
    conditions = []
    while f"{task}_in_image_{len(conditions)}" in file:
        image = nhwc(file.get(f"{task}_in_image_{len(conditions)}"))
        noise = nhwc(file.get(f"{task}_vae_noise_{len(conditions)}"))
        conditions.append(pipeline.autoencoder.encode(image, noise))
    sigmas = flow.sampling_sigmas(pipeline.index["steps"], pipeline.index["shift"])
    run = functools.partial(
        sample_image, sigmas=sigmas, guidance=float(pipeline.index["guidance_scale"])
    )
    start = nhwc(file.get(f"{task}_in_latents"))
    final, trace = jax.jit(lambda params, *inputs: run(pipeline.network.bind(params), *inputs))(
        pipeline.network.params, start, prompt, negative, tuple(conditions)
    )
    file.check(f"{task}_latents_trajectory", nchw(trace.latents), LOOSE)
    image = nchw(pipeline.autoencoder.decode(final))
    file.check(f"{task}_image", image, LOOSE)
    recorded = pipeline.index["checks"].get(task, {})
    if "image_peak" in recorded:
        peak, expected = np.max(np.abs(image)), recorded["image_peak"]
        case = f"{GROUP}/index"
        file.directory.add(compare(case, f"checks.{task}.image_peak", peak, expected, LOOSE))


def _verify_text_task(pipeline: GoldenPipeline, file: GoldenFile, task: str) -> None:
    image, noise = (nhwc(file.get(f"{task}_{key}")) for key in ("in_image", "vae_noise"))
    latents = pipeline.autoencoder.encode(image, noise)
    file.check(f"{task}_condition_latents", nchw(latents))
    uniforms, mask_id = (
        jax.numpy.asarray(file.get(f"{task}_uniforms")),
        pipeline.index["mask_index"],
    )
    tokens: Any = np.full((1, pipeline.index["text_length"]), mask_id, np.int32)
    question = file.get(f"{task}_prompt_ids").astype(np.int32)
    tokens[:, : question.size] = question

    @jax.jit
    def run(params: Any) -> Any:
        return sample_text(
            pipeline.network.bind(params),
            pipeline.encode_text,
            latents,
            tokens,
            lambda step: uniforms[step],
            steps=pipeline.index["text_steps"],
            mask_id=mask_id,
        )

    filled, _ = run(pipeline.network.params)
    file.check(f"{task}_out_tokens", filled[0])
