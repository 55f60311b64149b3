"""A whole directory in the layout of the goldens, completed from its inputs by the PyTorch peer.

`complete` turns `Inputs` into files. `stored.py` reads the inputs of a stored directory, `draws.py`
draws other ones. Regenerating the stored goldens proves peer and generator at once.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from typing import Any

import numpy as np
import torch

from tests.peer import golden_losses, samplers
from tests.peer.golden_losses import Arrays, arrays_of, doubled, tensors
from tests.peer.losses import StandInEncoder, Weights, train_table
from unialign_jax.convert.torch_layers import Sizes, time_sincos
from unialign_jax.convert.torch_model import Transformer

OUTPUTS = ("image", "text_logits", "hidden", "text_hidden", "mid_image", "mid_text")
STEPS = (1, 2, 4, 20, 28, 50, 1000)


@dataclasses.dataclass
class Inputs:
    """Everything that determines a directory.

    Attributes:
      sizes, state: the transformer.
      encoder: table, position, null_ids of the stand-in text encoder.
      cases: name -> (index fields data_type and block_depth, in_* arrays).
      float16: cases that are repeated with time features rounded to float16.
      block_depth, weights: of the losses.
      losses: file stem -> input arrays of that file.
      train: settings of train3.json; its draws are in `losses["train3_draws"]`.
      samplers: file stem -> input arrays (flow: with guidance, shift and steps).
      tables: custom sigmas; arrays of the two single operations.
    """

    sizes: Sizes
    state: Arrays
    encoder: Arrays
    cases: dict[str, tuple[dict[str, Any], Arrays]]
    float16: list[str]
    block_depth: int
    weights: Weights
    losses: dict[str, Arrays]
    train: dict[str, Any]
    samplers: dict[str, Arrays]
    tables: dict[str, Arrays]

    def model(self) -> Transformer:
        model = Transformer(self.sizes)
        model.load_state_dict(tensors(self.state), strict=True)
        return model

    def text_encoder(self) -> StandInEncoder:
        return StandInEncoder(**tensors(self.encoder))


def complete(inputs: Inputs) -> dict[str, Any]:
    """Returns path -> dict of arrays (.npz, .safetensors) or JSON value, without the inventory."""
    model, encoder = inputs.model(), inputs.text_encoder()
    files: dict[str, Any] = {}
    _transformer(files, inputs, model)
    _losses(files, inputs, model, encoder)
    _samplers(files, inputs, model, encoder)
    _tables(files, inputs)
    return files


@torch.no_grad()
def run_case(model, arrays: Arrays, block_depth, dtype=torch.float32, **options) -> dict[str, Any]:
    """The six outputs of one case, without those that are None, as out_*."""
    i = {name: value.to(dtype) for name, value in tensors(arrays).items()}
    conditions = [i[k] for k in sorted(i) if k.startswith("in_cond_")]
    out = model(
        i["in_text"], i["in_timestep"], i.get("in_latents"), conditions, block_depth, **options
    )
    return {f"out_{n}": x for n, x in zip(OUTPUTS, out, strict=True) if x is not None}


def _transformer(files: dict[str, Any], inputs: Inputs, model: Transformer) -> None:
    folder = "tiny_transformer/"
    config, extra = inputs.sizes.to_json()
    files[folder + "config.json"], files[folder + "extra_config.json"] = config, extra
    files[folder + "diffusion_pytorch_model.safetensors"] = inputs.state
    exact, rounded = copy.deepcopy(model).double(), copy.deepcopy(model)
    rounded.float16_time_features = True
    index, floor, float16 = {}, {}, {}
    for name, (fields, arrays) in inputs.cases.items():
        depth, trace = fields["block_depth"], {}
        out = run_case(model, arrays, depth, trace=trace)
        traces = {f"trace_{k}": v for k, v in trace.items()}
        files[f"{folder}cases/{name}.npz"] = {**arrays, **arrays_of({**out, **traces})}
        shapes = {k: list(v.shape) for k, v in {**arrays, **out}.items()}
        times = arrays["in_timestep"].tolist()
        index[name] = {**fields, "timesteps": times, "shapes": shapes}
        sincos = time_sincos(torch.from_numpy(arrays["in_timestep"])).double()
        near = run_case(exact, arrays, depth, torch.float64, sincos=sincos)
        far = run_case(exact, arrays, depth, torch.float64)
        floor[name] = {k.removeprefix("out_"): _floor(out[k], near[k], far[k]) for k in out}
        if name in inputs.float16:
            again = arrays_of(run_case(rounded, arrays, depth))
            for key in ("out_image", "out_text_logits"):
                float16[f"{name}_{key}"] = again[key]
    files[folder + "float16_time_features.npz"] = float16
    files[folder + "index.json"] = index
    meaning = "float32 against float64 with float32 and with float64 time features"
    files[folder + "noise_floor.json"] = {"meaning": meaning, "cases": floor}


def _floor(single, near, far) -> dict[str, float]:
    error, peak = float((single - near).abs().max()), float(near.abs().max())
    return {
        "max_abs": error,
        "max_rel_to_peak": error / peak,
        "max_rel_to_peak_time_features_float64": float((single - far).abs().max()) / peak,
        "peak": peak,
    }


def _losses(files: dict[str, Any], inputs: Inputs, model, encoder) -> None:
    folder, depth, weights = "losses/", inputs.block_depth, inputs.weights
    files[folder + "stand_in_text_encoder.safetensors"] = inputs.encoder
    values, without, norms, floors = {}, {}, {}, {}
    for stem, arrays in inputs.losses.items():
        if stem in golden_losses.SINGLE:
            files[f"{folder}{stem}.npz"] = golden_losses.SINGLE[stem](arrays)
        elif stem.startswith("text_loss_"):
            file, values[stem], without[stem] = golden_losses.text_loss(
                model, encoder, arrays, depth
            )
            files[f"{folder}{stem}.npz"] = file
        elif stem.startswith("total_loss_"):
            result = golden_losses.total_loss(model, encoder, arrays, depth, weights)
            task = stem.removeprefix("total_loss_")
            files[f"{folder}{stem}.npz"] = result["arrays"]
            files[f"{folder}grads_total_{task}.safetensors"] = result["grads"]
            values[stem], without[task] = result["line"], result["without"]
            norms[task], floors[task] = result["norms"], result["floor"]
    files[folder + "grad_norms.json"] = norms
    meaning = "float32 against float64, same weights and draws; relative"
    files[folder + "noise_floor.json"] = {"meaning": meaning, "cases": floors}
    files[folder + "index.json"] = {
        "loss_weights": {f"{k}_training_weight": v for k, v in dataclasses.asdict(weights).items()},
        "block_depth": depth,
        "mask_index": inputs.sizes.mask_id,
        "values": values,
        "params_without_grad": without,
    }
    batch, draws = inputs.losses["total_loss_gen"], inputs.losses["train3_draws"]
    files[folder + "train3.json"], files[folder + "train3_params.safetensors"] = (
        golden_losses.train_steps(model, encoder, batch, draws, inputs.train, depth, weights)
    )
    files[folder + "train3_draws.npz"] = draws


def _samplers(files: dict[str, Any], inputs: Inputs, model, encoder) -> None:
    images, texts = {}, {}
    for stem, arrays in inputs.samplers.items():
        i = tensors(arrays)
        if stem.startswith("flow_"):
            steps = int(i.pop("steps"))
            files[f"samplers/{stem}.npz"] = {
                **arrays_of(i),
                **_flow(model, i, steps),
            }
            out = files[f"samplers/{stem}.npz"]["out_latents"]
            exact = _flow(copy.deepcopy(model).double(), doubled(i), steps)["out_latents"]
            peak = float(np.abs(out).max())
            images[stem] = {
                "peak": peak,
                "float64_rel_to_peak": float(np.abs(out - exact).max()) / peak,
            }
        elif stem == "text_forward":
            log_probs = samplers.text_log_probs(model, encoder, i["in_latents"], i["tokens"])
            more = {"log_probs": log_probs, "mask_index": inputs.sizes.mask_id}
            files[f"samplers/{stem}.npz"] = arrays_of({**i, **more})
        else:
            given = (i["in_latents"], i["prompt_tokens"], i["uniforms"])
            cached = "_cache_" in stem
            out, texts[stem] = samplers.text_trajectory(model, encoder, *given, cached)
            files[f"samplers/{stem}.npz"] = {**arrays, **out}
    encoder_file = "losses/stand_in_text_encoder.safetensors"
    files["samplers/index.json"] = {"image": images, "text": texts, "text_encoder": encoder_file}


def _flow(model, i, steps: int) -> Arrays:
    return samplers.flow_trajectory(
        model,
        i["in_latents"],
        i["in_prompt_embeds"],
        i["in_negative_embeds"],
        [i[k] for k in sorted(i) if k.startswith("in_cond_")],
        float(i["guidance"]),
        float(i["shift"]),
        steps,
    )


def _tables(files: dict[str, Any], inputs: Inputs) -> None:
    folder, index = "scheduler_tables/", {}
    for shift in (1, 3):
        sigmas, timesteps = (x.numpy() for x in train_table(float(shift)))
        ends = sigmas.astype(np.float64)[[-1, 0]]
        custom = inputs.tables["custom"]["custom_in"]
        file = {"train_sigmas": sigmas, "train_timesteps": timesteps, "custom_in": custom}
        file["sigma_min_f64"], file["sigma_max_f64"] = ends
        made = {f"steps{n}": samplers.sampling_table(shift, n) for n in STEPS}
        made["custom"] = samplers.sampling_table(shift, custom=custom)
        for name, tables in made.items():
            file[f"{name}_sigmas"], file[f"{name}_timesteps"] = tables
        files[f"{folder}shift{shift}.npz"] = file
        low, high = map(float, ends)
        index[f"shift{shift}"] = {"sigma_min": low, "sigma_max": high, "dtype": "float32"}
    files[folder + "index.json"] = index
    euler = inputs.tables["euler_constant_velocity"]
    sigmas, timesteps = samplers.sampling_table(3, 4)
    states = [euler["x"]]
    for now, then in itertools.pairwise(sigmas):
        states.append(states[-1] + (then - now) * euler["velocity"])
    files[folder + "euler_constant_velocity.npz"] = {
        **euler,
        "sigmas": sigmas,
        "timesteps": timesteps,
        "trajectory": np.stack(states),
    }
    scale = inputs.tables["scale_noise_shift3"]
    sigmas, timesteps = (x.numpy() for x in train_table(3.0))
    rows = [int(np.argmin(np.abs(timesteps - t))) for t in scale["timesteps"]]
    wide = sigmas[rows][:, None, None, None]
    out = wide * scale["noise"] + (1 - wide) * scale["sample"]
    files[folder + "scale_noise_shift3.npz"] = {**scale, "out": out}
