"""Stage 2: generation, editing and perception together, the reference's released recipe.

    unialign plan --config stage2_unify --topology v5e:16x16

The reference alternates batches of generation and of editing and perception, 384 each.
"""

from ml_collections import ConfigDict

from unialign_jax.config_files import beside

stages = beside(__file__, "stages")


def get_config() -> ConfigDict:
    """Returns the config."""
    return stages.stage(
        mixture={"generate": 0.5, "edit": 0.25, "perceive": 0.25},
        steps=80_000,
        global_batch=1024,
        learning_rate=3e-5,
    )
