"""Stage 4: answers to questions about images, beside all earlier tasks.

unialign plan --config stage4_instruct --topology v5e:16x16
"""

from ml_collections import ConfigDict

from unialign_jax.config_files import beside

stages = beside(__file__, "stages")


def get_config() -> ConfigDict:
    """Returns the config."""
    return stages.stage(
        mixture={
            "answer": 0.4,
            "generate": 0.2,
            "edit": 0.2,
            "perceive": 0.1,
            "compose": 0.1,
        },
        steps=20_000,
        global_batch=1024,
        learning_rate=2e-5,
        image_dropout=0.05,
    )
