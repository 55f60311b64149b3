"""Stage 1: images from texts and captions of images, from Stable Diffusion 3's weights.

unialign plan --config stage1_pretrain --topology v5e:16x16
"""

from ml_collections import ConfigDict

from unialign_jax.config_files import beside

stages = beside(__file__, "stages")


def get_config() -> ConfigDict:
    """Returns the config."""
    return stages.stage(
        mixture={"generate": 1.0},
        steps=100_000,
        global_batch=2048,
        learning_rate=1e-4,
    )
