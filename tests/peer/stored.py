"""The inputs of a stored directory of goldens: what `golden.complete` needs to make it again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from tests.peer.golden import Inputs
from tests.peer.golden_losses import Arrays
from tests.peer.losses import Weights
from unialign_jax.convert.torch_layers import Sizes

# Which arrays of a file are given; all others follow from them.
GIVEN = {
    "tiny_transformer/cases/": r"in_.*",
    "losses/noise_schedule": r"t",
    "losses/sample_t": r"eps_.*",
    "losses/subs": r"x0|move_chance|uniform|logits|mask_index",
    "losses/timestep_density": r"uniform_in|sigma_grid|logit_normal_in_.*",
    "losses/contrastive": r"image_hidden|text_hidden|temperature",
    "losses/cosine": r"x|y",
    "losses/gradnorm": r"x|upstream",
    "losses/text_loss_": r"x0|latents|label_mask|eps_t|mask_uniform",
    "losses/total_loss_": (
        r"caption_ids|instruction_ids|target_latents|cond_latents_.*|feat_.*|img_noise|img_normal"
        r"|img_dropout_uniform|txt_eps_t|txt_mask_uniform"
    ),
    "losses/train3_draws": r".*",
    "samplers/flow_": r"in_.*|guidance|shift",
    "samplers/text_ddpm_": r"in_latents|uniforms|prompt_tokens",
    "samplers/text_forward": r"in_latents|tokens",
    "scheduler_tables/euler_constant_velocity": r"x|velocity",
    "scheduler_tables/scale_noise_shift3": r"sample|noise|timesteps",
    "scheduler_tables/shift": r"custom_in",
}


GROUPS = ("tiny_transformer", "losses", "samplers", "scheduler_tables")


def find_goldens() -> Path | None:
    """The directory of stored goldens: in the tests, or handed to the checkout from outside."""
    tests = Path(__file__).parents[1]
    beside = [folder / "shared/goldens" for folder in (tests.parent, tests.parents[1])]
    for root in (tests / "goldens", *beside):
        if all((root / name).exists() for name in ("inventory.json", *GROUPS)):
            return root
    return None


def given(root: Path, name: str) -> Arrays:
    """The input arrays of one .npz file."""
    pattern = next(value for key, value in GIVEN.items() if name.startswith(key))
    with np.load(root / name) as file:
        return {key: file[key] for key in file.files if re.fullmatch(pattern, key)}


def read_inputs(root: Path) -> Inputs:
    """Reads the four covered groups of a directory."""

    def read(name: str) -> Any:
        return json.loads((root / name).read_text())

    def folder(prefix: str) -> dict[str, Arrays]:
        paths = sorted(root.glob(f"{prefix}*.npz"))
        return {path.stem: given(root, path.relative_to(root).as_posix()) for path in paths}

    tiny, losses = "tiny_transformer/", read("losses/index.json")
    train = read("losses/train3.json")
    del train["steps"]
    samplers = folder("samplers/")
    for stem, arrays in samplers.items():
        if stem.startswith("flow_"):
            steps = re.search(r"steps(\d+)_", stem).group(1)
            arrays["steps"] = np.array(int(steps))
    index = read(tiny + "index.json")
    with np.load(root / tiny / "float16_time_features.npz") as file:
        float16 = sorted({key.partition("_out_")[0] for key in file.files})
    tables = folder("scheduler_tables/")
    return Inputs(
        sizes=Sizes.from_json(read(tiny + "config.json"), read(tiny + "extra_config.json")),
        state=load_file(root / tiny / "diffusion_pytorch_model.safetensors"),
        encoder=load_file(root / "losses/stand_in_text_encoder.safetensors"),
        cases={
            name: (
                {key: entry[key] for key in ("data_type", "block_depth")},
                given(root, f"{tiny}cases/{name}.npz"),
            )
            for name, entry in index.items()
        },
        float16=float16,
        block_depth=losses["block_depth"],
        weights=Weights(
            *(
                losses["loss_weights"][f"{name}_training_weight"]
                for name in ("caption", "contrastive", "alignment")
            )
        ),
        losses=folder("losses/"),
        train=train,
        samplers=samplers,
        tables={**tables, "custom": tables["shift1"]},
    )
