"""A training step and a sampling step as one would write them in PyTorch.

The network is `unialign_jax.convert.torch_model`, which the goldens prove; the loss is proven on
them by tests/test_torch_step.py. Only what a term reads is computed: no text logits in the image
branch, no velocity in the text branch, and after the last block only the stream that is read.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unialign_jax.convert.torch_model import Transformer

LEVELS = 1000
EPS = 1e-3
NEVER = -1e6
TEMPERATURE = 0.07
IMAGE, TEXT = (0,), (1,)


@dataclasses.dataclass(frozen=True)
class Objective:
    """Weights of the terms, the chance of the null text, and where features are aligned."""

    text: float = 0.2
    contrastive: float = 0.05
    align: float = 0.1
    text_dropout: float = 0.1
    align_depth: int = 8


@dataclasses.dataclass(frozen=True)
class Given:
    """The inputs of a step.

    Attributes:
      target: [B, C, H, W] latents.
      caption_ids: int64 [B, L].
      caption, instruction, null: text embeddings, [B, L, E] and [1, L, E].
      image_features, text_features: [B, A].
      noise, density, dropout, eps_t, mask_uniform: the random numbers.
    """

    target: Tensor
    caption_ids: Tensor
    caption: Tensor
    instruction: Tensor
    null: Tensor
    image_features: Tensor
    text_features: Tensor
    noise: Tensor
    density: Tensor
    dropout: Tensor
    eps_t: Tensor
    mask_uniform: Tensor


def contrastive(image: Tensor, text: Tensor) -> Tensor:
    """Symmetric InfoNCE between the means over tokens."""
    image, text = (F.normalize(x.mean(dim=1), dim=-1) for x in (image, text))
    logits = image @ text.T / TEMPERATURE
    labels = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def cosine(x: Tensor, y: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(x, y, dim=-1).mean()


def text_loss(logits: Tensor, ids: Tensor, masked: Tensor, weight: Tensor, mask_id: int) -> Tensor:
    """Cross-entropy at masked positions times their weight, over all positions."""
    logits[..., mask_id] = NEVER
    nll = F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view(ids.shape)
    return (nll * masked * weight[:, None]).mean()


def loss(model: Transformer, given: Given, objective: Objective) -> tuple[Tensor, dict]:
    """The weighted total and the terms, of both branches on the same weights."""
    depth, batch = objective.align_depth, len(given.target)
    index = (torch.sigmoid(given.density) * LEVELS).long().clamp(0, LEVELS - 1)
    sigmas = (LEVELS - index) / LEVELS
    wide = sigmas[:, None, None, None]
    noisy = wide * given.noise + (1 - wide) * given.target
    dropped = (given.dropout < objective.text_dropout)[:, None, None]
    words = torch.where(dropped, given.null, given.instruction)
    image = model.trunk(words, sigmas * LEVELS, noisy, (), depth, last=IMAGE)
    velocity, image_hidden = model.image_head(image, *noisy.shape[2:])

    spread = torch.arange(batch, device=sigmas.device) / batch
    t = (1 - EPS) * ((given.eps_t / batch + spread) % 1) + EPS
    sigma = -torch.log1p(-(1 - EPS) * t)
    weight = (1 - EPS) * torch.exp(sigma) / torch.expm1(sigma)
    masked = given.mask_uniform < (1 - torch.exp(-sigma))[:, None]
    text = model.trunk(given.caption, torch.zeros_like(t), given.target, (), depth, last=TEXT)
    logits, text_hidden = model.text_head(text)

    assert image.middle is not None and text.middle is not None
    terms = {
        "image": F.mse_loss(noisy - wide * velocity, given.target),
        "text": text_loss(logits, given.caption_ids, masked, weight, model.sizes.mask_id),
        "contrastive": contrastive(image_hidden, text_hidden),
        "align_image": cosine(model.siglip_adapter_img(image.middle[0]), given.image_features),
        "align_text": cosine(model.siglip_adapter_text(text.middle[1]), given.text_features),
    }
    total = terms["image"] + objective.text * terms["text"]
    total = total + objective.contrastive * terms["contrastive"]
    return total + objective.align * (terms["align_image"] + terms["align_text"]), terms


class Training:
    """AdamW steps with clipping; `loss_of` is `loss` or its compiled form."""

    def __init__(self, model: Transformer, loss_of: Any, objective: Objective, optimizer: Any):
        self.model, self.loss_of, self.objective, self.clip = (
            *(model, loss_of, objective),
            optimizer.clip,
        )
        # As ours: never trained, and never read by the tasks with an image.
        model.null_image_embd.requires_grad_(False)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=optimizer.learning_rate,
            betas=(optimizer.b1, optimizer.b2),
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
            fused=True,
        )

    def step(self, given: Given) -> tuple[Tensor, Tensor]:
        """Total loss and gradient norm, still on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        total, _ = self.loss_of(self.model, given, self.objective)
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip, foreach=True)
        self.optimizer.step()
        return total.detach(), norm


def sampling_step(
    model: Transformer,
    x: Tensor,
    texts: Tensor,
    sigma: Tensor,
    sigma_next: Tensor,
    guidance: float,
) -> Tensor:
    """One guided Euler step; `texts` [2B, L, E] are the negative prompts, then the prompts."""
    timestep = (sigma * LEVELS).expand(2 * len(x))
    streams = model.trunk(texts, timestep, torch.cat([x, x]), last=IMAGE)
    low, high = model.image_head(streams, *x.shape[2:])[0].chunk(2)
    return x + (sigma_next - sigma) * (low + guidance * (high - low))
