"""A stage of the published model, and the same with few and narrow layers."""

from __future__ import annotations

import copy

from configs import sizes
from unialign_jax import config as configs

# Wide enough that attention, projections and heads all show in a count that is off by a part.
_NARROW = {
    "layers": 3,
    "width": 256,
    "heads": 4,
    "text_width": 128,
    "vocab_size": 1000,
    "adapter_hidden": 192,
    "adapter_out": 160,
}
_NARROW_ENCODER = {
    "width": 128,
    "heads": 4,
    "kv_dim": 64,
    "layers": 2,
    "mlp_width": 320,
    "vocab_size": 1000,
}


def stage(*, narrow: bool = True, **values: object) -> dict:
    """A resolved config; dotted keys with __ for the dot, as `model__remat="full"`."""
    config = configs.to_plain(configs.load_config("photos"))
    network = copy.deepcopy(sizes.full())
    if narrow:
        network["model"].update(_NARROW)
        network["text_encoder"].update(_NARROW_ENCODER)
    config.update(network)
    config["autoencoder"] = {"widths": (32, 32, 32, 32), "blocks": 1}
    config["data"].update(image_size=512, text_length=256, features="teacher")
    config["objective"]["align_depth"] = 1
    config["train"].update(global_batch=8, micro_batches=1)
    config["mesh"] = {"data": -1, "fsdp": 1, "context": 1, "tensor": 1}
    for key, value in values.items():
        section, _, name = key.partition("__")
        config[section][name] = value
    return config
