"""Stage 1: images from texts and captions of images, from Stable Diffusion 3's weights.

unialign plan --config stage1_pretrain --topology v5e:16x16
"""

import importlib.util
import pathlib

from ml_collections import ConfigDict

_spec = importlib.util.spec_from_file_location(
    "stages", pathlib.Path(__file__).with_name("stages.py")
)
assert _spec is not None and _spec.loader is not None
stages = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(stages)


def get_config() -> ConfigDict:
    """Returns the config."""
    return stages.stage(
        mixture={"generate": 1.0},
        steps=100_000,
        global_batch=2048,
        learning_rate=1e-4,
    )
