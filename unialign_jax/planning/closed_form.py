"""FLOPs of a training step by arithmetic, from the sizes of the networks alone.

It checks the count that `flops.py` reads from the traced program: the two share no code. Matrix
products only, two FLOPs per multiply-add. With D channels and T tokens in both streams of a branch
a block costs 24 T D^2 for its linear layers and 4 T^2 D for attention, forward. 18 T D^2 of that
follow on attention; the last block leaves them out for the stream that its branch does not read.
The backward costs twice the forward, less the gradients of inputs that need none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from unialign_jax.models.mmdit_config import MAX_CONDITIONS, MMDiTConfig
from unialign_jax.models.t5 import T5Config


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a step works on.

    Attributes:
        batch: samples.
        image: tokens of one image; `null` where the model sees none.
        text: tokens of one text.
        conditions: condition images beside the target.
        image_branch, text_branch: which branches the task has.
        aligned_image, aligned_text: which adapters run.
        last_aligned: the adapters read both streams after the last block.
    """

    batch: int
    image: int
    text: int
    conditions: int = 0
    image_branch: bool = True
    text_branch: bool = True
    aligned_image: bool = True
    aligned_text: bool = True
    last_aligned: bool = False


@dataclasses.dataclass(frozen=True)
class Flops:
    """FLOPs of a step on all devices: the network forward and backward, the encoder, repetition."""

    model: float
    text_encoder: float
    repeated: float

    @property
    def hardware(self) -> float:
        """What is executed."""
        return self.model + self.text_encoder + self.repeated


def step(model: MMDiTConfig, encoder: T5Config, sizes: Sizes, *, fused: bool = False) -> Flops:
    """FLOPs of one step with a frozen text encoder and an optimiser without matrix products.

    Args:
        model: sizes of the network and its remat policy.
        encoder: sizes of the text encoder.
        sizes: what it works on.
        fused: attention through kernels that form the logits again in their backward (one of
            whose 5 products so repeats the forward's: splash with all keys in one kernel, cuDNN).
    """
    network = repeated = 0.0
    for tokens, image, unread in _branches(sizes):
        blocks = _blocks(model, tokens, unread)
        network += 3 * sum(blocks.values()) + _modulation(model)
        network += _embedding(model, sizes, image)
        repeated += sum(blocks[name] for name in _REPEATED[model.remat])
        if fused:
            repeated += blocks["attention"] / 2
    network += _heads(model, sizes)
    rows = sizes.image_branch + sizes.text_branch
    texts = sizes.batch * rows
    contrast = 0.0
    if sizes.image_branch and sizes.text_branch:
        contrast = 3 * 2 * sizes.batch**2 * model.width
    return Flops(
        sizes.batch * network + contrast,
        texts * text_encoder(encoder, sizes.text),
        sizes.batch * repeated,
    )


# What the backward forms again, by remat policy: `blocks` below names the parts.
_REPEATED = {
    "none": (),
    "full": ("linear", "attention"),
    "attention": ("linear",),
    "dots": ("attention",),
    "dots_attention": (),
}


def _branches(sizes: Sizes) -> list[tuple[int, int, int]]:
    """(tokens in both streams, those of images, those not read after the last block) by branch."""
    found = []
    if sizes.image_branch:
        image = sizes.image * (1 + sizes.conditions)
        found.append((image + sizes.text, image, sizes.text))
    if sizes.text_branch:
        found.append((sizes.image + sizes.text, sizes.image, sizes.image))
    return [(*tokens, 0 if sizes.last_aligned else unread) for *tokens, unread in found]


def _blocks(model: MMDiTConfig, tokens: int, unread: int) -> dict[str, float]:
    """Forward FLOPs per sample of all blocks: qkv 6 D^2, out 2 D^2, MLP 16 D^2 per token."""
    d = model.width
    return {
        "linear": (model.layers * 24.0 * tokens - 18.0 * unread) * d**2,
        "attention": model.layers * 4.0 * tokens**2 * d,
    }


def _modulation(model: MMDiTConfig) -> float:
    """AdaLN of both streams, forward and backward, per sample; the time MLP reads no parameters."""
    d = model.width
    adaln = 3 * model.layers * 2 * 2 * d * 6 * d
    return adaln + 2 * 2 * 256 * d + 3 * 2 * d * d


def _embedding(model: MMDiTConfig, sizes: Sizes, image: int) -> float:
    """Patches and text embeddings, forward and the gradient of the weights only, per sample."""
    patch = model.patch_size**2 * model.channels
    linear = 2 * 2 * model.width * (image * patch + sizes.text * model.text_width)
    return linear + image * _stem(model)


def _stem(model: MMDiTConfig) -> float:
    """Windows of 3 x 3 to S and to 2 S channels, then a linear layer: of one image token."""
    pixels, s = model.patch_size**2, model.stem_channels
    first = 2 * 2 * 9 * model.channels * s
    return pixels * (first + 3 * 2 * 9 * s * 2 * s + 3 * 2 * 2 * s * model.width)


def _heads(model: MMDiTConfig, sizes: Sizes) -> float:
    """Velocity, text logits and adapters, forward and backward, per sample."""
    d, total = model.width, 0.0
    if sizes.image_branch:
        patch = model.patch_size**2 * model.channels
        total += 2 * d * 2 * d + 2 * sizes.image * d * patch
    if sizes.text_branch:
        total += 2 * sizes.text * d * model.vocab_size
    adapter = 2 * model.adapter_hidden * (d + model.adapter_out)
    total += adapter * (
        (sizes.aligned_image and sizes.image_branch)
        + (sizes.aligned_text and sizes.image_branch and sizes.text_branch)
    )
    details = sizes.image * _details(model) if sizes.image_branch else 0.0
    return 3 * total + details


def _details(model: MMDiTConfig) -> float:
    """S channels from the tokens and the pixels, to S and to C: of one token, forward and back."""
    pixels, s = model.patch_size**2, model.detail_channels
    seen = 2 * 2 * 9 * (1 + MAX_CONDITIONS) * model.channels * s
    return pixels * (3 * 2 * model.width * s + seen + 3 * 2 * 9 * s * (s + model.channels))


def text_encoder(config: T5Config, length: int) -> float:
    """Forward FLOPs of the T5 encoder for one text of `length` tokens."""
    inner = config.heads * config.kv_dim
    per_token = 2 * config.width * (4 * inner + 3 * config.mlp_width)
    return config.layers * length * (per_token + 4.0 * length * inner)


def sizes_of(config: Mapping[str, Any], *, task: str, conditions: int, batch: int) -> Sizes:
    """`Sizes` of a task of a resolved config.

    Args:
        config: nested dicts; `data.image_size` pixels are diffused in patches.
        task: a training task.
        conditions: condition images.
        batch: samples of the step.
    """
    model = config["model"]
    factor = 1
    if config.get("autoencoder"):
        factor = 2 ** (len(config["autoencoder"]["widths"]) - 1)
    side = config["data"]["image_size"] // factor // model["patch_size"]
    answer = task == "answer"
    return Sizes(
        batch=batch,
        image=side * side,
        text=config["data"]["text_length"],
        conditions=conditions,
        image_branch=not answer,
        text_branch=answer or task in config["objective"].get("text_tasks", (task,)),
        aligned_image=not answer,
        aligned_text=not answer,
        last_aligned=not answer and config["objective"]["align_depth"] == model["layers"],
    )
