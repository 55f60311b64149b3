"""Part of group `components`: SigLIP's towers and logits."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from unialign_jax.convert.siglip_names import siglip_config_from_json, siglip_from_torch
from unialign_jax.models.teachers import siglip
from unialign_jax.parity.golden import GoldenDirectory
from unialign_jax.parity.transformer import nhwc

CONFIG = "components/siglip/config.json"
WEIGHTS = "components/siglip/model.safetensors"
NUMBERS = "components/siglip_io.npz"


def verify(goldens: GoldenDirectory) -> None:
    """Compares pooled and last hidden states, normalised features and logits."""
    if not goldens.lists(CONFIG, WEIGHTS, NUMBERS):
        return
    config = siglip_config_from_json(goldens.json(CONFIG))
    params = siglip_from_torch(goldens.open(WEIGHTS).all(), config)
    network = siglip.build(config)
    file = goldens.open(NUMBERS)
    images, ids = nhwc(file.get("pixel_values")), file.get("input_ids").astype(np.int32)
    compute = jax.jit(lambda params, *batch: _outputs(network.bind(params), *batch))
    for key, value in compute(params, images, ids).items():
        file.check(key, value)


def _outputs(model: siglip.SigLIP, images: Any, ids: Any) -> dict[str, Any]:
    image, text = model.encode_image(images), model.encode_text(ids)
    logits = model.logits(image.pooled, text.pooled)
    return {
        "logits_per_image": logits,
        "logits_per_text": logits.T,
        "image_embeds": siglip.normalise(image.pooled),
        "text_embeds": siglip.normalise(text.pooled),
        "vision_last_hidden": image.hidden,
        "vision_pooler": image.pooled,
        "text_last_hidden": text.hidden,
        "text_pooler": text.pooled,
        # The reference's two functions give what it pools.
        "get_image_features": image.pooled,
        "get_text_features": text.pooled,
    }
