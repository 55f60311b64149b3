"""Stage 2: generation, editing and perception together, the reference's released recipe.

    unialign plan --config stage2_unify --topology v5e:16x16

The reference alternates batches of generation and of editing and perception, 384 each.
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
        mixture={"generate": 0.5, "edit": 0.25, "perceive": 0.25},
        steps=80_000,
        global_batch=1024,
        learning_rate=3e-5,
    )
