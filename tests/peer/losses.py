"""The losses in plain PyTorch, every draw an argument; each returns all of its stages."""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from unialign_jax.convert.torch_model import Transformer

EPS = 1e-3  # of the noise schedule and of the sampled times
NEVER = -1e6  # stands for minus infinity
NULL_TEXT_RATE = 0.1
TEMPERATURE = 0.07


@dataclasses.dataclass(frozen=True)
class StandInEncoder:
    """Plays the text encoder: a table of tokens and a table of positions."""

    table: Tensor
    position: Tensor
    null_ids: Tensor

    def __call__(self, ids: Tensor) -> Tensor:
        return self.table[ids] + self.position[: ids.shape[1]]

    def double(self) -> StandInEncoder:
        return StandInEncoder(self.table.double(), self.position.double(), self.null_ids)


@dataclasses.dataclass(frozen=True)
class Weights:
    caption: float = 0.2
    contrastive: float = 0.05
    alignment: float = 0.1


def total_noise(t: Tensor) -> Tensor:
    return -torch.log1p(-(1 - EPS) * t)


def rate_noise(t: Tensor) -> Tensor:
    return (1 - EPS) / (1 - (1 - EPS) * t)


def move_chance(t: Tensor) -> Tensor:
    return 1 - torch.exp(-total_noise(t))


def loss_weight(t: Tensor) -> Tensor:
    return rate_noise(t) / torch.expm1(total_noise(t))


def sigma_ends(like: Tensor) -> tuple[Tensor, Tensor]:
    low, high = like.new_zeros(()), like.new_ones(())
    return EPS + total_noise(low), total_noise(high)


def importance_t(t: Tensor) -> Tensor:
    low, high = (torch.log1p(-torch.exp(-sigma)) for sigma in sigma_ends(t))
    sigma = -torch.log1p(-torch.exp(t * high + (1 - t) * low))
    return -torch.expm1(-sigma) / (1 - EPS)


def sample_t(eps: Tensor, importance: bool = False) -> Tensor:
    """Antithetic times of a batch from its uniforms."""
    n = len(eps)
    spread = (eps / n + torch.arange(n, dtype=eps.dtype) / n) % 1
    t = (1 - EPS) * spread + EPS
    return importance_t(t) if importance else t


def mask_tokens(x0: Tensor, chance: Tensor, uniform: Tensor, mask_id: int) -> Tensor:
    return torch.where(uniform < chance, mask_id, x0)


def substitute(logits: Tensor, xt: Tensor, mask_id: int) -> Tensor:
    """Log-probabilities: never the mask, and certainty where the input is not masked."""
    shifted = logits + NEVER * F.one_hot(torch.tensor(mask_id), logits.shape[-1])
    log_probs = F.log_softmax(shifted, dim=-1)
    certain = torch.where(
        F.one_hot(xt, logits.shape[-1]).bool(), torch.zeros_like(logits), NEVER
    ).to(logits.dtype)
    return torch.where((xt == mask_id)[..., None], log_probs, certain)


def text_loss(
    model: Transformer,
    encoder: StandInEncoder,
    x0: Tensor,
    latents: Tensor | None,
    eps_t: Tensor,
    mask_uniform: Tensor,
    block_depth: int | None,
    label_mask: Tensor | None = None,
) -> dict[str, Tensor]:
    """Masked-diffusion loss of clean tokens given a clean image."""
    mask_id = model.sizes.mask_id
    t = sample_t(eps_t)
    sigma, dsigma, chance = total_noise(t), rate_noise(t), move_chance(t)[:, None]
    xt = mask_tokens(x0, chance, mask_uniform, mask_id)
    if label_mask is not None:
        xt = torch.where(label_mask.bool(), xt, x0)
    embeds = encoder(xt)
    timestep = torch.zeros_like(t)
    _, logits, hidden, text_hidden, mid_image, mid_text = model(
        embeds, timestep, latents, (), block_depth
    )
    log_probs = substitute(logits, xt, mask_id)
    nll = -log_probs.gather(-1, x0[..., None])[..., 0]
    weighted = nll * (dsigma / torch.expm1(sigma))[:, None]
    if label_mask is not None:
        weighted = weighted * label_mask
    return {
        "t": t,
        "sigma": sigma,
        "dsigma": dsigma,
        "move_chance": chance,
        "masked": xt == mask_id,
        "xt": xt,
        "text_embeds": embeds,
        "model_timestep": timestep,
        "logits": logits,
        "log_probs": log_probs,
        "weighted_nll": weighted,
        "loss": weighted.sum() / x0.numel(),
        "text_hidden": text_hidden,
        "image_hidden": hidden,
        "mid_text": mid_text,
        "mid_image": mid_image,
    }


def train_table(shift: float = 1.0) -> tuple[Tensor, Tensor]:
    """The 1000 descending training sigmas and timesteps, float32."""
    sigmas = torch.arange(1000, 0, -1, dtype=torch.float32) / 1000
    sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
    return sigmas, sigmas * 1000


def mode_density(uniform: Tensor, scale: float) -> Tensor:
    return 1 - uniform - scale * (torch.cos(math.pi * uniform / 2) ** 2 - 1 + uniform)


def cosmap_weighting(sigmas: Tensor) -> Tensor:
    return 2 / (math.pi * (1 - 2 * sigmas + 2 * sigmas**2))


def image_loss(
    model: Transformer,
    target: Tensor,
    conditions: list[Tensor],
    text_embeds: Tensor,
    null_embeds: Tensor,
    draws: dict[str, Tensor],
    block_depth: int | None,
) -> dict[str, Tensor]:
    """Flow matching on x0; `draws` holds noise, normal and dropout_uniform."""
    u = torch.sigmoid(draws["normal"])
    index = (u * 1000).long()
    table, timesteps = (x.to(target.dtype) for x in train_table())
    sigmas, timesteps = table[index], timesteps[index]
    wide = sigmas[:, None, None, None]
    noisy = (1 - wide) * target + wide * draws["noise"]
    dropped = draws["dropout_uniform"] < NULL_TEXT_RATE
    used = torch.where(dropped[:, None, None], null_embeds, text_embeds)
    velocity, _, hidden, text_hidden, mid_image, mid_text = model(
        used, timesteps, noisy, conditions, block_depth
    )
    predicted = noisy - wide * velocity
    return {
        "u": u,
        "index": index,
        "dropout_mask": dropped,
        "timesteps": timesteps,
        "sigmas": sigmas,
        "noisy_latents": noisy,
        "text_embeds_used": used,
        "velocity": velocity,
        "hidden": hidden,
        "text_hidden": text_hidden,
        "mid_image": mid_image,
        "mid_text": mid_text,
        "loss": ((predicted - target) ** 2).mean(),
    }


def contrastive(image: Tensor, text: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Symmetric cross-entropy between the means over tokens, the diagonal being the pairs."""
    image, text = (F.normalize(x.mean(dim=1), dim=-1) for x in (image, text))
    logits = image @ text.T / temperature
    labels = torch.arange(len(logits))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def cosine_alignment(x: Tensor, y: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(x, y, dim=-1).mean()


class GradNorm(torch.autograd.Function):
    """Identity whose gradient is scaled to unit length."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad / (grad.norm() + 1e-8)


TERMS = ("image", "caption", "contrastive", "text_align", "image_align")


def total_loss(
    model: Transformer,
    encoder: StandInEncoder,
    batch: dict[str, Tensor],
    draws: dict[str, Tensor],
    block_depth: int,
    weights: Weights,
) -> dict[str, Tensor]:
    """One training step's loss.

    `batch` holds target_latents, cond_latents_k, instruction_ids, caption_ids, feat_text and
    feat_image; `draws` img_noise, img_normal, img_dropout_uniform, txt_eps_t and txt_mask_uniform.
    The stages come back under the goldens' names, the terms as `loss_*`.
    """
    conditions = [batch[k] for k in sorted(batch) if k.startswith("cond_latents_")]
    with torch.no_grad():
        instruction = encoder(batch["instruction_ids"])
        null = encoder(encoder.null_ids)
    img_draws = {k: draws[f"img_{k}"] for k in ("noise", "normal", "dropout_uniform")}
    img = image_loss(
        model, batch["target_latents"], conditions, instruction, null, img_draws, block_depth
    )
    txt = text_loss(
        model,
        encoder,
        batch["caption_ids"],
        batch["target_latents"],
        draws["txt_eps_t"],
        draws["txt_mask_uniform"],
        block_depth,
    )
    terms = {
        "image": img.pop("loss"),
        "caption": txt.pop("loss"),
        "contrastive": contrastive(img["hidden"], txt["text_hidden"]),
        "text_align": cosine_alignment(txt["mid_text"], batch["feat_text"]),
        "image_align": cosine_alignment(img["mid_image"], batch["feat_image"]),
    }
    del txt["masked"]
    total = terms["image"] + weights.caption * terms["caption"]
    total = total + weights.contrastive * terms["contrastive"]
    total = total + weights.alignment * (terms["text_align"] + terms["image_align"])
    return {
        "instruction_embeds": instruction,
        "null_embeds": null,
        **{f"img_{k}": v for k, v in img.items()},
        **{f"txt_{k}": v for k, v in txt.items()},
        **{f"loss_{k}": v for k, v in terms.items()},
        "total": total,
    }
