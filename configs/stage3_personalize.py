"""Stage 3: scenes composed of one to three reference images, with the earlier tasks kept alive.

unialign plan --config stage3_personalize --topology v5e:16x16
"""

from ml_collections import ConfigDict

from unialign_jax.config_files import beside

stages = beside(__file__, "stages")


def get_config() -> ConfigDict:
    """Returns the config."""
    return stages.stage(
        mixture={"compose": 0.5, "generate": 0.25, "edit": 0.25},
        steps=20_000,
        global_batch=1024,
        learning_rate=2e-5,
        image_dropout=0.05,
    )
