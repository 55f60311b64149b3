"""A dozen photographs at 64 pixels, learnt by heart on a CPU: pictures, captions and edits.

    unialign prepare photos --out photos
    unialign train --config photos --workdir runs/photos
    unialign sample --model runs/photos --task generate --out out --prompt "a bowl of fruit"

It is an overfit on purpose: the whole path of a large run on real input, with an end that the eye
can judge. Images are diffused as pixels, since no autoencoder is involved.
"""

import importlib.util
import pathlib

from ml_collections import ConfigDict

_spec = importlib.util.spec_from_file_location(
    "sizes", pathlib.Path(__file__).with_name("sizes.py")
)
sizes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sizes)

PIXELS, PATCH, TEXT_LENGTH = 64, 8, 24


def get_config() -> ConfigDict:
    """Returns the config; `--config.data.path` names another prepared data set."""
    return ConfigDict(
        {
            "seed": 0,
            **sizes.small(
                pixels=PIXELS,
                patch=PATCH,
                width=192,
                layers=4,
                vocabulary=512,
                text_length=TEXT_LENGTH,
            ),
            "objective": {
                "image_weight": 1.0,
                "text_weight": 0.2,
                "contrastive_weight": 0.05,
                "align_weight": 0.1,
                "align_depth": 2,
                "align_stop_step": 0,
                "image_alignment": "pooled",
                "image_weighting": "velocity",
                "timestep_density": "logit_normal",
                "timestep_shift": 1.0,
                "text_weighting": "inverse_time",
                "text_over_pads": True,
                "text_dropout": 0.1,
                "condition_dropout": 0.0,
                "contrastive_group": 0,
                "stratify_group": 0,
                "perceive_text_image": "source",
                "accumulate": "mean",
            },
            "data": {
                "path": "photos",
                "image_size": PIXELS,
                "text_length": TEXT_LENGTH,
                "mixture": {"generate": 2.0, "edit": 1.0},
                "workers": 0,
            },
            "train": {
                "steps": 1500,
                "global_batch": 12,
                "micro_batches": 1,
                "log_every": 20,
                "sample_every": 500,
            },
            "optimizer": {
                "learning_rate": 1e-3,
                "warmup_steps": 50,
                "decay_steps": 1500,
                "weight_decay": 0.0,
                "b1": 0.9,
                "b2": 0.99,
                "eps": 1e-8,
                "clip": 1.0,
                "clip_scale": 1.0,
                "freeze": ("null_image",),
            },
            "ema": {"decay": 0.99, "warmup": True},
            "checkpoint": {"every_steps": 500, "keep": 2},
            "mesh": {"data": -1, "fsdp": 1, "context": 1, "tensor": 1},
            "sample": {
                "steps": 28,
                "guidance": 2.0,
                "shift": 1.0,
                "table": "plain",
                "text_steps": 24,
            },
        }
    )
