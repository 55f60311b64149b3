r"""A dozen photographs learnt by heart on a CPU: pictures, captions and edits.

    unialign prepare photos --out photos
    unialign train --config photos --workdir runs/photos
    unialign sample --model runs/photos --prompt "a cup of coffee on a red saucer with a spoon" \
        --out out

It is an overfit on purpose: the whole path of a large run on real input, with an end that the eye
can judge. Images are diffused as pixels, since no autoencoder is involved. `photos` works at 64
pixels, `photos:small` at 32 pixels and is what `unialign demo` trains.
"""

from ml_collections import ConfigDict

from unialign_jax.config_files import beside

sizes = beside(__file__, "sizes")

TEXT_LENGTH = 16
# A patch of 4 x 4 pixels is 48 numbers. The noise in it has to pass through the network, so the
# width leaves room beside it: at 8 x 8 pixels (192 numbers), width 192 learnt far slower.
PATCH, WIDTH, LAYERS = 4, 128, 3


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config.

    Args:
      variant: "" for 64 pixels, "small" for 32.
    """
    if variant not in ("", "small"):
        raise ValueError(f"unknown variant {variant!r}: photos or photos:small")
    pixels, steps, batch = (32, 1500, 12) if variant == "small" else (64, 3000, 8)
    return ConfigDict(
        {
            "seed": 0,
            # A bundle whose weights training starts from; "" draws them.
            "init_from": "",
            **sizes.small(
                pixels=pixels,
                patch=PATCH,
                width=WIDTH,
                layers=LAYERS,
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
                "image_weighting": "x0",
                "timestep_density": "logit_normal",
                # At high noise only the text says which photograph it is.
                "timestep_shift": 3.0,
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
                "image_size": pixels,
                "text_length": TEXT_LENGTH,
                "mixture": {"generate": 2.0, "edit": 1.0},
                "features": "",
                "workers": 0,
                "max_bad_share": 0.01,
                "shuffle": True,
                # About unit variance, as an autoencoder's latents have.
                "pixel_scale": 2.0,
            },
            "train": {
                "steps": steps,
                "global_batch": batch,
                "micro_batches": 1,
                "log_every": 20,
                "sample_every": steps // 3,
            },
            "optimizer": {
                "learning_rate": 2e-3,
                "warmup_steps": 50,
                "decay_steps": steps,
                "weight_decay": 0.0,
                "b1": 0.9,
                "b2": 0.99,
                "eps": 1e-8,
                "clip": 1.0,
                "clip_scale": 1.0,
                "freeze": ("null_image",),
            },
            "ema": {"decay": 0.99, "warmup": True},
            "checkpoint": {"every_steps": steps // 3, "keep": 2},
            "mesh": {"data": -1, "fsdp": 1, "context": 1, "tensor": 1},
            "sample": {
                # More steps gather more of a small network's errors: 22.9 dB with 28, 23.7 with 12.
                "steps": 12,
                "guidance": 1.0,
                "shift": 3.0,
                "table": "plain",
                "text_steps": 16,
                "negative": "",
            },
        }
    )
