r"""All six tasks learnt on drawn scenes, whose truth is known exactly.

    unialign prepare scenes --out scenes --level demo
    unialign cache --data scenes --teacher scenes
    unialign train --config scenes:demo --workdir runs/scenes --config.data.path=scenes
    unialign evaluate scenes --model runs/scenes

`scenes:demo` is what `unialign demo` trains: 16 pixels, minutes on two CPU cores. `scenes:full` is
the richer level at 32 pixels, one and a half to two and a half hours there. `scenes:gpu` is that
level at 64 pixels with a larger network in bfloat16, for one GPU. Images are diffused as pixels and
the small T5 encoder is trained with the network.
"""

import dataclasses

from ml_collections import ConfigDict

from unialign_jax.config_files import beside

sizes = beside(__file__, "sizes")


# Of the features that `unialign cache --teacher scenes` makes.
TEACHER_WIDTH = 64


@dataclasses.dataclass(frozen=True)
class Variant:
    """What sets a variant apart.

    Attributes:
      level: of the scenes.
      records: what `prepare scenes` is to write, over all tasks.
      vocabulary: words of the level with the special tokens.
      patch: height and width of a patch. Four patches on a side are fast; 8 x 8 RGB pixels, though,
        do not pass through 128 channels, and shapes stay blurred.
      shift: of the noise levels in training. Where a thing lies exactly where its words put it,
        half of all levels can be above 0.98: there only words and conditions say what the picture
        is; through less noise, one of so few pixels can be seen. Where places have jitter, what
        words leave open is decided at lower levels.
      sample_steps, sample_shift: of sampling, on levels that may be higher than those of training:
        what such a network makes of a picture that is nearly there is less exact than what it makes
        of noise, and a shape loses with every step there.
      first_steps: on `first` alone.
      first: mixture of the first steps.
      mixture: of the tasks afterwards.
      muon_rate, learning_rate: the peaks. Of a long training, the scores stand still at a high rate
        until it falls; a short one gets further with it.
      initial_gates: of the blocks. Shapes are made out sooner where a block adds less than its
        input.
      stem: channels of the network's stem, or 0. Told apart by edges, shapes are made out sooner
        where an edge is seen alike wherever in a patch it lies.
      details: channels of the convolutions beside its image head, or 0. Maps of perception and what
        stays as it is in an edit are drawn from the pixels of the condition image.
      rotary_slowest: radians per patch of the slowest channels. Words ask for what lies at any
        patch: on more than a few, that takes channels that hardly turn.
    """

    level: str
    pixels: int
    records: int
    vocabulary: int
    text_length: int
    patch: int
    shift: float
    sample_steps: int
    sample_shift: float
    width: int
    layers: int
    steps: int
    first_steps: int
    batch: int
    first: dict[str, float]
    mixture: dict[str, float]
    muon_rate: float
    learning_rate: float
    initial_gates: float
    rotary_slowest: float
    stem: int = 0
    details: int = 0
    dtype: str = "float32"


_DEMO = Variant(
    level="demo",
    pixels=16,
    records=30_000,
    vocabulary=78,
    text_length=18,
    patch=4,
    shift=50.0,
    sample_steps=12,
    sample_shift=50.0,
    width=128,
    layers=4,
    steps=1780,
    first_steps=300,
    batch=32,
    # What words mean is learnt sooner before the other tasks join, where most of a picture can be
    # copied.
    first={"generate": 1.0},
    mixture={"generate": 4.1, "edit": 1.65, "perceive": 0.45, "compose": 2.25, "answer": 2.55},
    muon_rate=0.02,
    learning_rate=2e-3,
    initial_gates=1.0,
    rotary_slowest=0.4,
)
_FULL = dataclasses.replace(
    _DEMO,
    level="full",
    pixels=32,
    records=120_000,
    vocabulary=82,
    text_length=26,
    shift=12.0,
    sample_steps=8,
    sample_shift=120.0,
    steps=8000,
    first_steps=2000,
    first={"generate": 1.0, "answer": 1.0},
    mixture={"generate": 3.0, "edit": 2.0, "perceive": 0.8, "compose": 1.2, "answer": 3.0},
    muon_rate=0.007,
    learning_rate=1.5e-3,
    initial_gates=0.4,
    rotary_slowest=0.02,
    stem=16,
    details=32,
)
_GPU = dataclasses.replace(
    _FULL,
    pixels=64,
    records=400_000,
    patch=8,
    width=384,
    layers=12,
    steps=30_000,
    batch=256,
    dtype="bfloat16",
)
VARIANTS = {"demo": _DEMO, "full": _FULL, "gpu": _GPU}


def get_config(variant: str = "demo") -> ConfigDict:
    """Returns the config.

    Args:
      variant: "demo", "full" or "gpu".
    """
    if variant not in VARIANTS:
        names = ", ".join(f"scenes:{name}" for name in VARIANTS)
        raise ValueError(f"unknown variant {variant!r}: one of {names}")
    v = VARIANTS[variant]
    network = sizes.small(
        pixels=v.pixels,
        patch=v.patch,
        width=v.width,
        layers=v.layers,
        vocabulary=v.vocabulary,
        text_length=v.text_length,
        text_layers=1,
    )
    network["model"].update(
        # The clean image is simpler than the noise in it, which need not pass through the network.
        prediction="image",
        condition_segments=True,
        positions_std=1.0,
        # Neighbouring patches lie 64 cells of the position table apart: on a grid of a few patches,
        # steps of one cell look nearly alike beside the noise.
        sample_size=64 * v.pixels,
        # Blocks that take part from the first step, with a head that looks at one place in all
        # images: what stays as it is in an edit is copied long before words are understood.
        initial_gates=v.initial_gates,
        rotary_fastest=3.0,
        rotary_slowest=v.rotary_slowest,
        stem_channels=v.stem,
        detail_channels=v.details,
        rotary_bias=2.0,
        adapter_out=TEACHER_WIDTH,
        unroll=variant != "gpu",
        dtype=v.dtype,
        remat="none",
    )
    return ConfigDict(
        {
            "seed": 0,
            # A bundle whose weights training starts from; "" draws them.
            "init_from": "",
            **network,
            "objective": {
                "image_weight": 1.0,
                "text_weight": 0.32,
                "answer_scale": 6.0,
                "answer_least_time": 0.5,
                "contrastive_weight": 0.05,
                "align_weight": 0.1,
                "align_depth": v.layers // 2,
                "align_stop_step": 0,
                "image_alignment": "pooled",
                "image_weighting": "x0",
                "timestep_density": "logit_normal",
                "timestep_shift": v.shift,
                "text_weighting": "inverse_time",
                # Captions are learnt in the steps on these; the others are faster without.
                "text_tasks": ("generate", "compose"),
                "text_over_pads": True,
                "text_dropout": 0.05,
                "condition_dropout": 0.0,
                "contrastive_group": 0,
                "stratify_group": 0,
                "perceive_text_image": "source",
                "accumulate": "mean",
            },
            "data": {
                "path": "scenes",
                "image_size": v.pixels,
                "text_length": v.text_length,
                "first_mixture": dict(v.first),
                "first_steps": v.first_steps,
                "mixture": dict(v.mixture),
                "features": "scenes",
                "workers": 0,
                "max_bad_share": 0.0,
                "shuffle": True,
                "pixel_scale": 2.0,
            },
            "train": {
                "steps": v.steps,
                "global_batch": v.batch,
                "micro_batches": 1,
                # No factor in common with the mixtures' periods, 100 and 220 steps: a line is about
                # the task of its step, and every task is met in turn.
                "log_every": 21,
                "sample_every": v.steps // 4,
            },
            "optimizer": {
                "algorithm": "muon",
                "muon_rate": v.muon_rate,
                "learning_rate": v.learning_rate,
                "warmup_steps": 50,
                "decay_steps": v.steps,
                "weight_decay": 0.0,
                "b1": 0.9,
                "b2": 0.99,
                "eps": 1e-8,
                "clip": 1.0,
                "clip_scale": 1.0,
                "freeze": ("null_image",),
            },
            "ema": {"decay": 0.99, "warmup": True},
            "checkpoint": {"every_steps": v.steps // 4, "keep": 2},
            "mesh": {"data": -1, "fsdp": 1, "context": 1, "tensor": 1},
            "sample": {
                "steps": v.sample_steps,
                "guidance": 1.0,
                "shift": v.sample_shift,
                "table": "plain",
                # Several per token, so that few are filled at once: they would not know each other.
                "text_steps": 3 * v.text_length,
                "text_temperature": 0.0,
                "negative": "",
            },
        }
    )
