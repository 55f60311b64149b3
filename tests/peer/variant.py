"""Other goldens than the stored ones: random inputs of other sizes, completed and written.

Run as `python -m tests.peer.variant DIRECTORY [--seed N]` to have a look at them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from tests.peer.draws import END_TOKEN, Draw, Variant, cases, losses, samplers
from tests.peer.files import write
from tests.peer.golden import Inputs, complete


def random_inputs(variant: Variant) -> Inputs:
    """Draws the inputs of a directory."""
    draw, sizes, v = Draw(variant), variant.sizes, variant
    null_ids = np.full((1, v.text_length), END_TOKEN)
    null_ids[0, 0] = 3
    encoder = {
        "table": draw.normal(sizes.vocab, sizes.text_width),
        "position": np.float32(0.3) * draw.normal(40, sizes.text_width),
        "null_ids": null_ids,
    }
    return Inputs(
        sizes=sizes,
        state=draw.state(),
        encoder=encoder,
        cases=cases(draw),
        float16=["gen_first", "edit_middle"],
        block_depth=v.block_depth,
        weights=v.weights,
        losses=losses(draw),
        train={
            "lr": 0.002,
            "weight_decay": 0.03,
            "betas": [0.85, 0.99],
            "eps": 1e-8,
            "warmup_steps": 3,
            "grad_clip": 0.9,
            "batch": "that of total_loss_gen.npz",
        },
        samplers=samplers(draw),
        tables={
            "custom": {"custom_in": np.array([0.9, 0.55, 0.2], np.float32)},
            "euler_constant_velocity": {
                "x": draw.normal(2, 3, 4, 4),
                "velocity": draw.normal(2, 3, 4, 4),
            },
            "scale_noise_shift3": {
                "sample": draw.normal(2, 3, 4, 4),
                "noise": draw.normal(2, 3, 4, 4),
                "timesteps": (3000 * np.float32([0.7, 0.25]) / (1 + 2 * np.float32([0.7, 0.25]))),
            },
        },
    )


def write_variant(directory: Path, variant: Variant) -> None:
    """Writes the four groups of a variant with their inventory."""
    write(directory, complete(random_inputs(variant)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    write_variant(arguments.directory, Variant(seed=arguments.seed))
