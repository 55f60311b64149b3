"""How long a step will take on this machine, before any data or compiled step is there.

One block of the network is run forwards and backwards at the sizes of a config, for about a second;
a step is so many times that. It is an estimate, for choosing a number of steps and for telling
a user what to expect.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unialign_jax.data.tasks import TRAINING_TASKS, Task
from unialign_jax.models import functional
from unialign_jax.models.mmdit import Branch, Heads, MMDiT
from unialign_jax.objective_config import IMAGE_TASKS
from unialign_jax.sampling.model import Model, build_model

# Losses, optimiser, moving average and random numbers beside the blocks. Measured in CPU seconds on
# two cores, steps of 32 images at width 128: 1.4 with AdamW, 1.6 to 1.7 with Muon.
OVERHEAD = 1.6
# Forwards alone, as a share of forwards and backwards.
FORWARD_SHARE = 1 / 3


def step_seconds(config: Mapping[str, Any], *, seconds: float = 1.0) -> float:
    """Seconds of a training step, as a mean over the steps of a run.

    Args:
        config: the resolved config as nested dicts.
        seconds: how long to measure; compiling comes on top.
    """
    model = build_model(config, None)
    rows = max(1, config["train"]["global_batch"] // jax.device_count())
    tokens = image_tokens(model) + model.text_length
    each = block_seconds(model, rows, seconds) / (rows * tokens)
    return OVERHEAD * each * rows * token_layers(config, model)


def token_layers(config: Mapping[str, Any], model: Model) -> float:
    """Tokens of one record times the layers that they go through, as a mean over the run."""
    data = config["data"]
    first = min(1.0, data.get("first_steps", 0) / config["train"]["steps"])
    return first * _of_mixture(config, model, data.get("first_mixture")) + (
        1 - first
    ) * _of_mixture(config, model, data.get("mixture"))


def _of_mixture(
    config: Mapping[str, Any], model: Model, mixture: Mapping[str, float] | None
) -> float:
    mixture = mixture or dict.fromkeys(map(str, TRAINING_TASKS), 1.0)
    total = sum(weight * _of_task(config, model, name) for name, weight in mixture.items())
    return total / sum(mixture.values())


def _of_task(config: Mapping[str, Any], model: Model, name: str) -> float:
    """The branches of a task, and the texts that go through the encoder for them."""
    encoder, task = config["text_encoder"], TRAINING_TASKS[Task(name)]
    encoder_layers = encoder["layers"] * (1.0 if encoder.get("train") else FORWARD_SHARE)
    image, text = image_tokens(model), model.text_length
    branches = []
    if task.image_branch:
        conditions = sum(task.conditions) / 2
        branches.append(image * (1 + conditions) + text)
    if not task.image_branch or name in config["objective"].get("text_tasks", IMAGE_TASKS):
        branches.append(image + text)
    return model.config.layers * sum(branches) + encoder_layers * text * len(branches)


def image_tokens(model: Model) -> int:
    """Patches of an image."""
    return (model.image_size // model.config.patch_size) ** 2


def block_seconds(model: Model, rows: int, seconds: float) -> float:
    """The median time of one block with both heads, forwards and backwards, for some rows."""
    # A stem runs once, not with every block: it is left to the overhead.
    config = dataclasses.replace(model.config, layers=1, stem_channels=0)
    network = functional.build(lambda rngs: MMDiT(config, rngs))
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    params = jax.tree.map(lambda leaf: 0.02 * normal(*leaf.shape), network.abstract)
    side = model.image_size
    latents = normal(rows, side, side, config.channels)
    text = normal(rows, model.text_length, config.text_width)

    def loss(params: Any, latents: Any, text: Any) -> Any:
        branch = Branch(text, jnp.full((rows,), 500.0), latents)
        out = network.bind(params)(branch, Heads(velocity=True, logits=True))
        return jnp.mean(out.velocity**2) + jnp.mean(out.logits**2)

    run = jax.jit(jax.grad(loss))
    jax.block_until_ready(run(params, latents, text))
    times: list[float] = []
    begin = time.perf_counter()
    while not times or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        jax.block_until_ready(run(params, latents, text))
        times.append(time.perf_counter() - start)
    return statistics.median(times)
