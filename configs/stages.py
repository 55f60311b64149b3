"""What the four training stages of UniAlignment share; each stage file names what it changes.

The paper's stage table was not at hand: the reference releases one configuration (generation,
editing and perception together), which `stage2_unify` follows. The other stages are ours, after
the recipe of Dual Diffusion (arXiv 2501.00289), on which the method builds.
"""

from ml_collections import ConfigDict

from unialign_jax.config_files import beside

sizes = beside(__file__, "sizes")

PIXELS, TEXT_LENGTH = 512, 256


def stage(
    *,
    mixture: dict[str, float],
    steps: int,
    global_batch: int,
    learning_rate: float,
    warmup_steps: int = 2000,
    image_dropout: float = 0.0,
) -> ConfigDict:
    """A stage of the full model on 512-pixel latents, with the reference's loss weights.

    Args:
      mixture: training tasks by weight.
      steps: optimiser steps of the stage.
      global_batch: samples per step.
      learning_rate: its peak.
      warmup_steps: of the linear warm-up.
      image_dropout: chance of empty condition images, for guidance by images.
    """
    full = sizes.full()
    return ConfigDict(
        {
            "seed": 0,
            # A bundle whose weights training starts from, with its autoencoder.
            "init_from": "",
            **full,
            "autoencoder": sizes.autoencoder(),
            "objective": {
                "image_weight": 1.0,
                "text_weight": 0.2,
                "contrastive_weight": 0.05,
                "align_weight": 0.1,
                "align_depth": 8,
                "align_stop_step": 0,
                "image_alignment": "pooled",
                "image_weighting": "x0",
                "timestep_density": "logit_normal",
                "timestep_shift": 1.0,
                "text_weighting": "inverse_time",
                "text_over_pads": True,
                "text_dropout": 0.1,
                "condition_dropout": image_dropout,
                "contrastive_group": 0,
                "stratify_group": 0,
                "perceive_text_image": "source",
                "accumulate": "mean",
            },
            "data": {
                "path": "set --config.data.path",
                "image_size": PIXELS,
                "text_length": TEXT_LENGTH,
                "mixture": mixture,
                "features": "",
                "workers": 4,
                "max_bad_share": 0.001,
                "shuffle": True,
            },
            "train": {
                "steps": steps,
                "global_batch": global_batch,
                "micro_batches": 1,
                "reduce_dtype": "float32",
                # No factor in common with the mixtures' periods, 4 and 10 steps: a line is about
                # the task of its step, and every task is met in turn.
                "log_every": 21,
                "sample_every": 0,
            },
            "optimizer": {
                "learning_rate": learning_rate,
                "warmup_steps": warmup_steps,
                "decay_steps": 0,
                "weight_decay": 1e-2,
                "b1": 0.9,
                "b2": 0.999,
                "eps": 1e-8,
                # The reference clips the sum of 12 micro-batches' gradients at 2.
                "clip": 2.0,
                "clip_scale": 12.0,
                "freeze": ("null_image",),
            },
            "ema": {"decay": 0.9999, "warmup": True},
            "checkpoint": {"every_steps": 5000, "keep": 3},
            # 0: as many devices as compilers gather weights over.
            "mesh": {"data": -1, "fsdp": 0, "context": 1, "tensor": 1},
            "sample": {
                "steps": 28,
                "guidance": 7.0,
                "shift": 3.0,
                "table": "double_shifted",
                "text_steps": 64,
                "text_temperature": 1.0,
                "negative": "",
            },
        }
    )
