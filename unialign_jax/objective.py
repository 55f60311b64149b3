"""The dual-stream objective: the one place where the terms of the loss meet.

A step runs the network twice on the same weights. The image branch denoises the target image given
clean text (rectified flow). The text branch fills in a masked caption given the clean image (masked
diffusion). Two alignment losses pull mid-depth features towards a frozen multimodal encoder
(intrinsic-modal), and a contrastive loss pulls the branches' outputs together (cross-modal).

    total = image + 0.2 text + 0.05 contrastive + 0.1 (align_image + align_text)

Source: arXiv 2509.23760 and its PyTorch implementation, of which `ObjectiveConfig.parity()` is the
exact equal. Every departure is a field of `ObjectiveConfig`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import flax.struct
import jax
import jax.numpy as jnp

from unialign_jax.diffusion import alignment, flow, masked
from unialign_jax.models.mmdit import Branch, Heads, MMDiT, Output
from unialign_jax.objective_config import ObjectiveConfig
from unialign_jax.parallel.rows import ALL_ROWS, Rows
from unialign_jax.parallel.storage import WHOLE, Storage

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

    EncodeText = Callable[[Int[Array, "M L"]], Float[Array, "M L E"]]

TERMS = ("image", "text", "contrastive", "align_image", "align_text")


@dataclasses.dataclass(frozen=True)
class TextTokens:
    """Ids with a meaning of their own.

    Attributes:
      mask_id: the mask token.
      end_id: the end token, which also pads.
      null_ids: [1][L] ids of the null text, for guidance.
    """

    mask_id: int
    end_id: int
    null_ids: Any


@flax.struct.dataclass
class Batch:
    """Model inputs of one step for one task.

    Attributes:
      target: [B, H, W, C] latents of the target image.
      instruction_ids: int32 [B, L], clean text of the image branch (generate: the caption).
      caption_ids: int32 [B, L], text that the text branch masks.
      caption_weight: float32 [B], 0 where a record has no caption; None is all 1.
      conditions: 0 to 3 condition images.
      label_mask: bool [B, L], True where a token may be masked and is learnt; None is everywhere.
      image_features: the teacher's image features, [B, A] or, by token, [B, rows, columns, A].
      text_features: [B, A], the teacher's text features, whichever the cache was made with.
    """

    target: Any
    instruction_ids: Any
    caption_ids: Any
    caption_weight: Any = None
    conditions: tuple[Any, ...] = ()
    label_mask: Any = None
    image_features: Any = None
    text_features: Any = None


@flax.struct.dataclass
class Draws:
    """Every random number of a step; goldens feed recorded ones.

    Attributes:
      noise: normal, like the target.
      density: [B], normal for the logit-normal density, uniform for the others.
      dropout_uniform: [B], for the null text.
      condition_uniform: [B], for empty conditions.
      eps_t: [B] uniform, for the text times.
      mask_uniform: [B, L] uniform, for the masks.
    """

    noise: Any
    density: Any
    dropout_uniform: Any
    condition_uniform: Any
    eps_t: Any
    mask_uniform: Any


@flax.struct.dataclass
class Report:
    """Unweighted terms of the loss, and every intermediate quantity by name."""

    terms: dict[str, Any]
    intermediates: dict[str, Any]


def sample_draws(key: jax.Array, batch: Batch, config: ObjectiveConfig) -> Draws:
    """Draws the random numbers of a step from a PRNG key."""
    keys = jax.random.split(key, 6)
    b, length = batch.caption_ids.shape
    normal = config.timestep_density == "logit_normal"
    return Draws(
        noise=jax.random.normal(keys[0], batch.target.shape),
        density=(jax.random.normal if normal else jax.random.uniform)(keys[1], (b,)),
        dropout_uniform=jax.random.uniform(keys[2], (b,)),
        condition_uniform=jax.random.uniform(keys[3], (b,)),
        eps_t=jax.random.uniform(keys[4], (b,)),
        mask_uniform=jax.random.uniform(keys[5], (b, length)),
    )


def noise_levels(density: Float[Array, " B"], config: ObjectiveConfig) -> dict[str, Any]:
    """Turns density draws into `u`, `index`, `sigmas`, `timesteps`, each [B]."""
    if config.timestep_density == "logit_normal":
        u = flow.logit_normal(density)
    elif config.timestep_density == "mode":
        u = flow.mode(density)
    else:
        u = density
    index = flow.level_index(u)
    sigmas = jnp.asarray(flow.training_sigmas(config.timestep_shift))[index]
    return {"u": u, "index": index, "sigmas": sigmas, "timesteps": sigmas * flow.TRAINING_LEVELS}


def corrupt_text(
    ids: Int[Array, "B L"],
    eps_t: Float[Array, " B"],
    mask_uniform: Float[Array, "B L"],
    config: ObjectiveConfig,
    mask_id: int,
    label_mask: Bool[Array, "B L"] | None = None,
    rows: Rows = ALL_ROWS,
) -> dict[str, Any]:
    """Masks a text at a stratified random time: `t`, `sigma`, `dsigma`, `move_chance`, `xt`."""
    least = masked.EPS if label_mask is None else config.answer_least_time
    t = masked.antithetic_times(eps_t, config.stratify_group, least, rows)
    sigma = masked.total_noise(t)
    chance = masked.mask_chance(sigma)[:, None]
    return {
        "t": t,
        "sigma": sigma,
        "dsigma": masked.rate_noise(t),
        "move_chance": chance,
        "xt": masked.mask_tokens(ids, chance, mask_uniform, mask_id, label_mask),
    }


def text_loss(
    logits: Float[Array, "B L V"],
    ids: Int[Array, "B L"],
    corrupted: dict[str, Any],
    config: ObjectiveConfig,
    tokens: TextTokens,
    label_mask: Bool[Array, "B L"] | None = None,
    record_weight: Float[Array, " B"] | None = None,
    rows: Rows = ALL_ROWS,
) -> tuple[Float[Array, ""], Float[Array, "B L"]]:
    """The masked-diffusion loss of a text and its terms per position.

    With "inverse_time", the sum of -log p / t over masked positions, divided by the number of
    positions, masked or not. With "flat", the mean of -log p over masked positions.
    """
    xt = corrupted["xt"]
    nll = -masked.target_log_probs(logits, xt, ids, tokens.mask_id)
    counted = jnp.ones(ids.shape, jnp.float32)
    if not config.text_over_pads:
        ends = jnp.cumsum(ids == tokens.end_id, axis=-1)
        counted *= (ends - (ids == tokens.end_id)) == 0
    if record_weight is not None:
        counted *= record_weight[:, None]
    learnt = counted if label_mask is None else counted * label_mask
    if config.text_weighting == "flat":
        learnt = learnt * (xt == tokens.mask_id)
        count = rows.sum(jnp.sum(learnt))
        return jnp.sum(nll * learnt) / jnp.maximum(count, 1.0), nll * learnt
    weight = corrupted["dsigma"] / jnp.expm1(corrupted["sigma"])
    weighted = nll * weight[:, None] * learnt
    return jnp.sum(weighted) / jnp.maximum(rows.sum(jnp.sum(counted)), 1.0), weighted


def image_loss(
    velocity: Float[Array, "B H W C"],
    noisy: Float[Array, "B H W C"],
    target: Float[Array, "B H W C"],
    sigmas: Float[Array, " B"],
    weighting: str,
    rows: Rows = ALL_ROWS,
) -> Float[Array, ""]:
    """Mean of w(sigma) (x_sigma - sigma v - x)^2, float32."""
    predicted = noisy - flow.expand(sigmas, noisy.ndim) * velocity
    weight = flow.expand(flow.loss_weight(sigmas, weighting), noisy.ndim)
    return rows.mean(weight * jnp.square(predicted - target))


def dual_stream_loss(
    transformer: MMDiT,
    encode_text: EncodeText,
    batch: Batch,
    draws: Draws,
    config: ObjectiveConfig,
    *,
    task: str,
    tokens: TextTokens,
    step: Any = 0,
    rows: Rows = ALL_ROWS,
    storage: Storage = WHOLE,
) -> tuple[Float[Array, ""], Report]:
    """The training loss of one batch of one task.

    Args:
      transformer: the network.
      encode_text: ids -> embeddings; called once, on all texts of the step.
      batch: inputs; the intrinsic-modal terms exist when their teacher features do.
      draws: the step's random numbers.
      config: weights and switches.
      task: one of `IMAGE_TASKS`, or "answer"; "answer" has a text branch only.
      tokens: mask, end and null ids.
      step: number of the step, for `align_stop_step`.
      rows: where the global batch lies; `batch` and `draws` are this device's rows of it.
      storage: how the network's weights are made whole.

    Returns:
      The weighted total, and a `Report` with the unweighted terms and intermediates. Where rows lie
      over several devices these are each device's shares, whose sums are the losses.
    """
    has_image_branch = task != "answer"
    has_text_branch = not has_image_branch or task in config.text_tasks
    seen: dict[str, Any] = {}
    texts: dict[str, Any] = {}
    if has_text_branch:
        corrupted = corrupt_text(
            batch.caption_ids,
            draws.eps_t,
            draws.mask_uniform,
            config,
            tokens.mask_id,
            batch.label_mask,
            rows,
        )
        texts["caption"] = corrupted["xt"]
        seen |= {f"txt_{k}": v for k, v in corrupted.items()}
    if has_image_branch:
        texts["instruction"] = _instruction_ids(batch, draws, config, tokens, seen)
    embeds = _encode_together(encode_text, texts)

    branches = {}
    if has_image_branch:
        branch, noisy = _image_branch(batch, draws, config, embeds, seen)
        branches["image"] = branch, _image_heads(batch, config)
    if has_text_branch:
        heads = _text_heads(batch, has_image_branch)
        branches["text"] = _text_branch(batch, config, embeds, task), heads
    outputs: dict[str, Output] = dict(
        zip(
            branches,
            transformer.forward_branches(
                list(branches.values()), config.align_depth, **_stored(storage)
            ),
            strict=True,
        )
    )

    terms: dict[str, Any] = {}
    if has_text_branch:
        text = outputs["text"]
        terms["text"], seen["txt_weighted_nll"] = text_loss(
            text.logits,
            batch.caption_ids,
            corrupted,
            config,
            tokens,
            batch.label_mask,
            batch.caption_weight,
            rows,
        )
        seen |= {
            "txt_logits": text.logits,
            "txt_log_probs": masked.substitute(text.logits, corrupted["xt"], tokens.mask_id),
            "txt_text_embeds": embeds["caption"],
            "txt_text_hidden": text.text_hidden,
            "txt_mid_text": text.mid_text,
        }
        if batch.text_features is not None and has_image_branch:
            terms["align_text"] = alignment.cosine_loss(
                text.mid_text, batch.text_features, batch.caption_weight, rows
            )
    if has_image_branch:
        image = outputs["image"]
        terms["image"] = image_loss(
            image.velocity, noisy, batch.target, seen["img_sigmas"], config.image_weighting, rows
        )
        if batch.image_features is not None:
            terms["align_image"] = _align_image(image, batch, config, rows)
        seen |= {
            "img_velocity": image.velocity,
            "img_hidden": image.image_hidden,
            "img_mid_image": image.mid_image,
        }
    if has_image_branch and has_text_branch:
        terms["contrastive"] = alignment.contrastive_loss(
            jnp.mean(outputs["image"].image_hidden, axis=1),
            jnp.mean(outputs["text"].text_hidden, axis=1),
            group=config.contrastive_group,
            weight=batch.caption_weight,
            rows=rows,
        )
    terms = {name: terms[name] for name in TERMS if name in terms}
    return _total(terms, config, task, step), Report(terms, seen)


def _instruction_ids(
    batch: Batch, draws: Draws, config: ObjectiveConfig, tokens: TextTokens, seen: dict[str, Any]
) -> Int[Array, "B L"]:
    """The image branch's text: the null text where it is dropped, for guidance."""
    dropped = draws.dropout_uniform < config.text_dropout
    seen["img_dropout_mask"] = dropped
    null = jnp.asarray(tokens.null_ids, batch.instruction_ids.dtype)
    return jnp.where(dropped[:, None], null, batch.instruction_ids)


def _stored(storage: Storage) -> dict[str, Any]:
    """Networks that know nothing of storage are not asked to."""
    return {} if storage is WHOLE else {"storage": storage}


def _encode_together(encode_text: EncodeText, texts: dict[str, Any]) -> dict[str, Any]:
    """One pass of the text encoder over all texts of the step."""
    embeds = encode_text(jnp.concatenate(list(texts.values())))
    result, start = {}, 0
    for name, ids in texts.items():
        result[name] = embeds[start : start + ids.shape[0]]
        start += ids.shape[0]
    return result


def _image_branch(
    batch: Batch,
    draws: Draws,
    config: ObjectiveConfig,
    embeds: dict[str, Any],
    seen: dict[str, Any],
) -> tuple[Branch, Any]:
    levels = noise_levels(draws.density, config)
    noisy = flow.interpolate(batch.target, draws.noise, levels["sigmas"])
    text = embeds["instruction"]
    conditions = batch.conditions
    if config.condition_dropout > 0:
        kept = flow.expand(draws.condition_uniform >= config.condition_dropout, noisy.ndim)
        conditions = tuple(c * kept for c in conditions)
    seen |= {f"img_{k}": v for k, v in levels.items()}
    seen |= {
        "img_noisy_latents": noisy,
        "img_text_embeds_used": text,
    }
    return Branch(text, levels["timesteps"], noisy, conditions), noisy


def _text_branch(
    batch: Batch, config: ObjectiveConfig, embeds: dict[str, Any], task: str
) -> Branch:
    image = batch.target
    if task == "perceive" and config.perceive_text_image == "source":
        image = batch.conditions[0]
    return Branch(embeds["caption"], jnp.zeros(image.shape[0]), image)


def _image_heads(batch: Batch, config: ObjectiveConfig) -> Heads:
    aligned = batch.image_features is not None
    pooled = config.image_alignment == "pooled"
    return Heads(
        velocity=True,
        image_hidden=True,
        mid_image=aligned and pooled,
        mid_image_tokens=aligned and not pooled,
    )


def _text_heads(batch: Batch, has_image_branch: bool) -> Heads:
    aligned = batch.text_features is not None and has_image_branch
    return Heads(logits=True, text_hidden=has_image_branch, mid_text=aligned)


def _align_image(
    image: Output, batch: Batch, config: ObjectiveConfig, rows: Rows
) -> Float[Array, ""]:
    if config.image_alignment == "pooled":
        return alignment.cosine_loss(image.mid_image, batch.image_features, rows=rows)
    features = batch.image_features
    if features.ndim != 4:
        raise ValueError(
            "image_alignment 'tokens' needs teacher features [B, rows, columns, A], not "
            f"{features.shape}"
        )
    predicted = image.mid_image_tokens
    h, w = batch.target.shape[1:3]
    patch = round((h * w / predicted.shape[1]) ** 0.5)
    grid = (features.shape[0], h // patch, w // patch, features.shape[-1])
    resized = jax.image.resize(features.astype(jnp.float32), grid, "linear")
    return alignment.cosine_loss(predicted, resized.reshape(predicted.shape), rows=rows)


def _total(
    terms: dict[str, Any], config: ObjectiveConfig, task: str, step: Any
) -> Float[Array, ""]:
    align = jnp.float32(config.align_weight)
    if config.align_stop_step:
        align = jnp.where(step < config.align_stop_step, align, 0.0)
    weights = {
        "image": config.image_weight,
        "text": config.text_weight * (config.answer_scale if task == "answer" else 1.0),
        "contrastive": config.contrastive_weight,
        "align_image": align,
        "align_text": align,
    }
    total = jnp.float32(0.0)
    for name, value in terms.items():
        total = total + weights[name] * value
    return total
