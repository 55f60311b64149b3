"""Group `losses`: schedules, single losses, whole training steps, gradients, optimiser."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unialign_jax.convert import names
from unialign_jax.diffusion import alignment, masked
from unialign_jax.models.mmdit import ALL_HEADS, Branch, Heads
from unialign_jax.objective import (
    Batch,
    Draws,
    TextTokens,
    corrupt_text,
    dual_stream_loss,
    text_loss,
)
from unialign_jax.objective_config import ObjectiveConfig
from unialign_jax.parity.golden import GoldenDirectory, GoldenFile, Row, compare
from unialign_jax.parity.text_encoder import StandInTextEncoder
from unialign_jax.parity.transformer import Network, nchw, nhwc

GROUP = "losses"
GRADIENT_TOLERANCE = 1e-4
# Terms of the reference, in our names.
TERM_NAMES = {
    "image": "image",
    "caption": "text",
    "contrastive": "contrastive",
    "text_align": "align_text",
    "image_align": "align_image",
}
TASKS = {"gen": "generate", "edit": "edit", "compose": "compose"}


def verify(goldens: GoldenDirectory) -> None:
    """Compares every case of the group, the optimiser steps included."""
    from unialign_jax.parity import optimiser, schedules

    schedules.verify_text_noise(goldens)
    schedules.verify_densities(goldens)
    _verify_single_functions(goldens)
    step = TrainingStep(goldens)
    for name in goldens.files(f"{GROUP}/text_loss_", ".npz"):
        _verify_text_loss(step, goldens.open(name))
    for name in goldens.files(f"{GROUP}/total_loss_", ".npz"):
        _verify_total(step, goldens.open(name))
    optimiser.verify(step)


class TrainingStep:
    """The golden training step: network, stand-in text encoder, objective at parity."""

    def __init__(self, goldens: GoldenDirectory):
        self.goldens = goldens
        self.network = Network(goldens)
        self.encoder = StandInTextEncoder(goldens)
        self.index = goldens.json(f"{GROUP}/index.json")
        weights = self.index["loss_weights"]
        # A recorded batch is one micro-batch, over which the reference contrasts and stratifies.
        self.config = ObjectiveConfig.parity(
            text_weight=weights["caption_training_weight"],
            contrastive_weight=weights["contrastive_training_weight"],
            align_weight=weights["alignment_training_weight"],
            align_depth=self.index["block_depth"],
            contrastive_group=0,
            stratify_group=0,
        )
        self.tokens = TextTokens(self.index["mask_index"], 1, self.encoder.null_ids)

    def loss(self, params: Any, batch: Batch, draws: Draws, task: str) -> Any:
        return dual_stream_loss(
            self.network.bind(params),
            self.encoder,
            batch,
            draws,
            self.config,
            task=task,
            tokens=self.tokens,
        )


def read_batch(file: GoldenFile) -> Batch:
    """The batch of a `total_loss_*` file."""
    conditions = []
    while f"cond_latents_{len(conditions)}" in file:
        conditions.append(nhwc(file.get(f"cond_latents_{len(conditions)}")))
    return Batch(
        target=nhwc(file.get("target_latents")),
        instruction_ids=file.get("instruction_ids").astype(np.int32),
        caption_ids=file.get("caption_ids").astype(np.int32),
        conditions=tuple(conditions),
        image_features=file.get("feat_image"),
        text_features=file.get("feat_text"),
    )


def read_draws(file: GoldenFile, prefix: str = "") -> Draws:
    """The recorded random numbers of a step."""
    dropout = file.get(f"{prefix}img_dropout_uniform")
    return Draws(
        noise=nhwc(file.get(f"{prefix}img_noise")),
        density=file.get(f"{prefix}img_normal"),
        dropout_uniform=dropout,
        condition_uniform=np.ones_like(dropout),
        eps_t=file.get(f"{prefix}txt_eps_t"),
        mask_uniform=file.get(f"{prefix}txt_mask_uniform"),
    )


def _verify_single_functions(goldens: GoldenDirectory) -> None:
    for name, check in (
        ("contrastive", _verify_contrastive),
        ("cosine", _verify_cosine),
        ("gradnorm", _verify_gradient_norm),
    ):
        if goldens.lists(f"{GROUP}/{name}.npz"):
            check(goldens.open(f"{GROUP}/{name}.npz"))


def _verify_contrastive(file: GoldenFile) -> None:

    def contrast(image: Any, text: Any) -> Any:
        return alignment.contrastive_loss(
            jnp.mean(image, axis=1),
            jnp.mean(text, axis=1),
            temperature=float(file.get("temperature")),
        )

    loss, grads = jax.value_and_grad(contrast, (0, 1))(
        jnp.asarray(file.get("image_hidden")), jnp.asarray(file.get("text_hidden"))
    )
    file.check("loss", loss)
    file.check_norm("grad_image", grads[0], GRADIENT_TOLERANCE)
    file.check_norm("grad_text", grads[1], GRADIENT_TOLERANCE)


def _verify_cosine(file: GoldenFile) -> None:
    loss, grad = jax.value_and_grad(alignment.cosine_loss)(
        jnp.asarray(file.get("x")), jnp.asarray(file.get("y"))
    )
    file.check("loss", loss)
    file.check_norm("grad_x", grad, GRADIENT_TOLERANCE)


def _verify_gradient_norm(file: GoldenFile) -> None:
    x = jnp.asarray(file.get("x"))
    _, pull = jax.vjp(alignment.normalise_gradient, x)
    file.check_norm("grad", pull(jnp.asarray(file.get("upstream")))[0], GRADIENT_TOLERANCE)


def _verify_text_loss(step: TrainingStep, file: GoldenFile) -> None:
    """The masked-text loss alone, with all its stages."""
    name = file.case.split("/")[-1]
    ids: Any = file.get("x0").astype(np.int32)
    label_mask: Any = file.get("label_mask").astype(bool) if "label_mask" in file else None
    latents = nhwc(file.get("latents")) if "latents" in file else None
    depth = int(file.get("block_depth"))
    tokens = TextTokens(int(file.get("mask_index")), 1, None)

    def run(params: Any) -> Any:
        corrupted = corrupt_text(
            ids,
            jnp.asarray(file.get("eps_t")),
            jnp.asarray(file.get("mask_uniform")),
            step.config,
            tokens.mask_id,
            label_mask,
        )
        embeds = step.encoder(corrupted["xt"])
        branch = Branch(embeds, jnp.zeros(ids.shape[0]), latents)
        heads = Heads(False, True, True, True, True, False, True)
        out = step.network.bind(params)(branch, heads, depth)
        loss, weighted = text_loss(out.logits, ids, corrupted, step.config, tokens, label_mask)
        seen = corrupted | {
            "masked": corrupted["xt"] != ids,
            "text_embeds": embeds,
            "logits": out.logits,
            "log_probs": masked.substitute(out.logits, corrupted["xt"], tokens.mask_id),
            "weighted_nll": weighted,
            "model_timestep": branch.timestep,
            "text_hidden": out.text_hidden,
            "image_hidden": out.image_hidden,
            "mid_text": out.mid_text,
            "mid_image": out.mid_image,
            "loss": loss,
        }
        return loss, seen

    (loss, seen), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(step.network.params)
    for key, value in seen.items():
        if key in file:
            file.check(key, value)
    values = step.index["values"].get(name, {})
    add = step.goldens.add
    recorded = {"loss": loss, "t": seen["t"], "masked": int(np.sum(seen["xt"] == tokens.mask_id))}
    if label_mask is None:
        recorded["masked"] = int(np.sum(seen["masked"]))
    for key, value in recorded.items():
        if key in values:
            add(compare(file.case, f"index.{key}", value, values[key], 1e-5))
    _check_without_gradient(step, file.case, name, grads)


def _verify_total(step: TrainingStep, file: GoldenFile) -> None:
    """One whole training step: terms, intermediates, gradients of the total and of each term."""
    name = file.case.split("total_loss_")[-1]
    batch, draws = read_batch(file), read_draws(file)
    task = TASKS[name]
    order = list(TERM_NAMES)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def whole(params: Any, of_total: Any, of_terms: Any) -> Any:
        """A weighted sum of total and terms, so that one program gives every gradient."""
        total, report = step.loss(params, batch, draws, task)
        terms = jnp.stack([report.terms[TERM_NAMES[key]] for key in order])
        extra = _all_heads(step, params, batch, report)
        return of_total * total + of_terms @ terms, (total, terms, report.intermediates | extra)

    nothing, everything = jnp.zeros(len(order)), jnp.eye(len(order))
    (_, (total, terms, seen)), gradient = whole(step.network.params, 1.0, nothing)
    per_term = [whole(step.network.params, 0.0, one)[1] for one in everything]
    file.check("total", total)
    for key, value in zip(order, terms, strict=True):
        file.check(f"loss_{key}", value)
    for key, value in seen.items():
        if key in file:
            shaped = nchw(value) if np.ndim(value) == 4 else value
            file.check(key, shaped, 5e-5 if key.startswith("img_") else 1e-5)
    file.get("block_depth")
    _check_index_values(step, file, name, total, dict(zip(order, terms, strict=True)), seen)
    _check_gradients(step, name, gradient, per_term, order)
    _check_without_gradient(step, file.case, name, gradient)


def _all_heads(step: TrainingStep, params: Any, batch: Batch, report: Any) -> dict[str, Any]:
    """What the reference computes and no loss of ours reads by itself."""
    seen = report.intermediates
    model = step.network.bind(params)
    image = Branch(
        seen["img_text_embeds_used"],
        seen["img_timesteps"],
        seen["img_noisy_latents"],
        batch.conditions,
    )
    text = Branch(seen["txt_text_embeds"], jnp.zeros(batch.target.shape[0]), batch.target)
    out = model.forward_branches([(image, ALL_HEADS), (text, ALL_HEADS)], step.config.align_depth)
    return {
        "img_text_hidden": out[0].text_hidden,
        "img_mid_text": out[0].mid_text,
        "txt_image_hidden": out[1].image_hidden,
        "txt_mid_image": out[1].mid_image,
        "txt_model_timestep": text.timestep,
        "instruction_embeds": step.encoder(batch.instruction_ids),
        "null_embeds": step.encoder(step.tokens.null_ids),
    }


def _check_index_values(
    step: TrainingStep, file: GoldenFile, name: str, total: Any, terms: dict[str, Any], seen: Any
) -> None:
    values = step.index["values"].get(f"total_loss_{name}", {})
    ours = {"total": total, **terms, "timesteps": seen["img_timesteps"]}
    ours["dropped_rows"] = int(np.sum(seen["img_dropout_mask"]))
    for key, expected in values.items():
        step.goldens.add(compare(file.case, f"index.{key}", ours.get(key), expected, 1e-5))


def _check_gradients(
    step: TrainingStep, name: str, gradient: Any, per_term: list[Any], order: list[str]
) -> None:
    goldens, config = step.goldens, step.network.config
    file = goldens.open(f"{GROUP}/grads_total_{name}.safetensors")
    ours = names.transformer_to_torch(gradient, config)
    for key in file.arrays:
        file.check_norm(key, ours.get(key), GRADIENT_TOLERANCE)
    norms = goldens.json(f"{GROUP}/grad_norms.json").get(name)
    if norms is None:
        return
    case = f"{GROUP}/grad_norms.{name}"
    square = sum(float(np.sum(np.square(x))) for x in jax.tree.leaves(gradient))
    goldens.add(compare(case, "global_l2", square**0.5, norms["global_l2"], GRADIENT_TOLERANCE))
    for i, term in enumerate(order):
        part = names.transformer_to_torch(per_term[i], config)
        for key, expected in norms["per_term"].get(term, {}).items():
            norm = float(np.linalg.norm(part[key]))
            if expected is None:
                expected, tolerance = 0.0, 0.0
            else:
                tolerance = GRADIENT_TOLERANCE
            goldens.add(compare(case, f"{term}/{key}", norm, expected, tolerance))


def _check_without_gradient(step: TrainingStep, case: str, name: str, grads: Any) -> None:
    """Parameters that the reference gives no gradient must get exactly zero from us."""
    ours = names.transformer_to_torch(grads, step.network.config)
    for key in step.index["params_without_grad"].get(name, []):
        worst = float(np.max(np.abs(ours[key])))
        step.goldens.add(Row(case, f"no gradient: {key}", worst, worst, 0.0, worst == 0.0))
