"""Single golden cases, cheap enough to be compared once per deliberate mistake.

Each check runs the package's own functions on a few files of the goldens, without compiling: the
small programs of single operations are compiled once and serve every mistake.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from unialign_jax import objective
from unialign_jax.parity import (
    autoencoder,
    losses,
    optimiser,
    samplers,
    schedules,
    t5,
    transformer,
)
from unialign_jax.parity.golden import LOOSE, GoldenDirectory, Row

GOLDENS = Path(__file__).parents[1] / "goldens"
NETWORK = tuple(
    f"tiny_transformer/{name}"
    for name in (
        "config.json",
        "extra_config.json",
        "diffusion_pytorch_model.safetensors",
        "index.json",
    )
)
STEP = (*NETWORK, "losses/stand_in_text_encoder.safetensors", "losses/index.json")
Check = Callable[[], list[Row]]


def cut_down(*names: str) -> GoldenDirectory:
    """The goldens with an inventory of these files alone."""
    goldens = GoldenDirectory(GOLDENS)
    goldens.inventory = {name: goldens.inventory[name] for name in names}
    return goldens


def network(case: str) -> list[Row]:
    """Outputs and intermediates of one case."""
    goldens = cut_down(*NETWORK, f"tiny_transformer/cases/{case}.npz")
    transformer.verify(goldens)
    return goldens.rows


def float16_time_features(case: str) -> list[Row]:
    """Outputs of one case with the published rounding of the time features."""
    path, rounded = (
        f"tiny_transformer/cases/{case}.npz",
        "tiny_transformer/float16_time_features.npz",
    )
    goldens = cut_down(*NETWORK, path, rounded)
    branch, file = transformer.read_branch(goldens.open(path)), goldens.open(rounded)
    model = transformer.Network(goldens, time_features_float16=True)
    outputs = transformer._outputs(model, model.params, branch, None)
    for key in ("out_image", "out_text_logits"):
        file.check(f"{case}_{key}", outputs[key], LOOSE)
    return goldens.rows


def single_losses() -> list[Row]:
    """Contrastive and cosine loss with gradients; noise schedules, times, SUBS, densities."""
    names = ("contrastive", "cosine", "gradnorm", "noise_schedule", "sample_t", "subs")
    goldens = cut_down(*(f"losses/{name}.npz" for name in (*names, "timestep_density")))
    losses._verify_single_functions(goldens)
    schedules.verify_text_noise(goldens)
    schedules.verify_densities(goldens)
    return goldens.rows


def text_loss(name: str) -> list[Row]:
    """The masked-text loss alone, from recorded logits."""
    goldens = cut_down(*STEP, f"losses/text_loss_{name}.npz")
    step, file = losses.TrainingStep(goldens), goldens.open(f"losses/text_loss_{name}.npz")
    ids, label_mask = file.get("x0").astype("int32"), file.get("label_mask").astype(bool)
    eps_t, uniform = (jnp.asarray(file.get(key)) for key in ("eps_t", "mask_uniform"))
    tokens = step.tokens
    seen = objective.corrupt_text(ids, eps_t, uniform, step.config, tokens.mask_id, label_mask)
    loss, weighted = objective.text_loss(
        jnp.asarray(file.get("logits")), ids, seen, step.config, tokens, label_mask
    )
    for key, value in {**seen, "weighted_nll": weighted, "loss": loss}.items():
        file.check(key, value)
    return goldens.rows


def whole_loss(name: str) -> list[Row]:
    """Terms and intermediates of one training step."""
    path = f"losses/total_loss_{name}.npz"
    goldens = cut_down(*STEP, path)
    step, file = losses.TrainingStep(goldens), goldens.open(path)
    batch, draws = losses.read_batch(file), losses.read_draws(file)
    total, report = step.loss(step.network.params, batch, draws, losses.TASKS[name])
    file.check("total", total)
    for theirs, ours in losses.TERM_NAMES.items():
        file.check(f"loss_{theirs}", report.terms[ours])
    for key, value in report.intermediates.items():
        if key in file:
            shaped = transformer.nchw(value) if jnp.ndim(value) == 4 else value
            file.check(key, shaped, 5e-5 if key.startswith("img_") else 1e-5)
    return goldens.rows


def sampling(case: str) -> list[Row]:
    """One recorded run."""
    runs = (f"samplers/{case}.npz", "samplers/text_forward.npz", "samplers/index.json")
    goldens = cut_down(*STEP, *runs)
    samplers.verify(goldens)
    return goldens.rows


def tables() -> list[Row]:
    """Sampling and training tables, the Euler step, the interpolation."""
    names = GoldenDirectory(GOLDENS).files("scheduler_tables/")
    goldens = cut_down(*names)
    schedules.verify(goldens)
    return goldens.rows


def component(module: Any, folder: str) -> Check:
    """A comparison of one component, given the module that makes it."""

    def check() -> list[Row]:
        whole = GoldenDirectory(GOLDENS)
        goldens = cut_down(*whole.files(f"components/{folder}/"), module.RESULTS)
        module.verify(goldens)
        return goldens.rows

    return check


def optimiser_steps() -> list[Row]:
    """The three optimiser steps of the reference, on one compiled gradient for all mistakes."""
    gradient, step = _gradient(), _training_step()

    def loss(params: Any, batch: Any, draws: Any, _: str) -> Any:
        def forward(params: Any) -> Any:
            with jax.disable_jit(False):
                return gradient(params, batch, draws)

        differentiable = jax.custom_vjp(lambda params: forward(params)[0])
        differentiable.defvjp(
            forward, lambda slopes, ct: (jax.tree.map(lambda g: ct[0] * g, slopes),)
        )
        total, terms = differentiable(params)
        return total, objective.Report(terms, {})

    step.loss = loss
    optimiser.verify(step)
    return step.goldens.rows


def _training_step() -> losses.TrainingStep:
    train = tuple(f"losses/train3{end}" for end in (".json", "_draws.npz", "_params.safetensors"))
    return losses.TrainingStep(cut_down(*STEP, *train, "losses/total_loss_gen.npz"))


@functools.cache
def _gradient() -> Callable[..., Any]:
    """Loss, terms and gradient of the golden step; first called without a mistake."""
    step = _training_step()

    def loss(params: Any, batch: Any, draws: Any) -> Any:
        total, report = step.loss(params, batch, draws, "generate")
        return total, report.terms

    # Three tiny steps: compiling well would take longer than running badly.
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=options)


CHECKS: dict[str, Check] = {
    # Timestep 3, an odd crop, one condition; the tolerance is the strict one.
    "network": lambda: network("edit_tall_nodepth"),
    "network_mid": lambda: network("edit_wide_d2"),
    "network_without_image": lambda: network("text_only_d1"),
    "float16": lambda: float16_time_features("edit_wide_d2"),
    "single_losses": single_losses,
    "label_mask": lambda: text_loss("label_mask"),
    "generate_loss": lambda: whole_loss("gen"),
    "edit_loss": lambda: whole_loss("edit"),
    "image_run": lambda: sampling("flow_edit_steps4_cfg7p0"),
    "text_run": lambda: sampling("text_ddpm_cache_prompt_steps8"),
    "text_run_left_masked": lambda: sampling("text_ddpm_cache_left_masked_steps20"),
    "tables": tables,
    "optimiser": optimiser_steps,
    "t5": component(t5, "t5_encoder"),
    "autoencoder": component(autoencoder, "vae"),
}


def run(check: str) -> list[Row]:
    """All comparisons of a check."""
    with jax.default_matmul_precision("highest"), jax.disable_jit():
        return CHECKS[check]()
