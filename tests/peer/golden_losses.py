"""Files of the goldens' `losses` folder, completed from their inputs by the PyTorch peer."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.peer import losses
from tests.peer.losses import TERMS, StandInEncoder, Weights
from unialign_jax.convert.torch_model import Transformer

Arrays = dict[str, np.ndarray]


def tensors(arrays: Arrays) -> dict[str, Tensor]:
    return {name: torch.tensor(array) for name, array in arrays.items()}


def arrays_of(values: dict[str, Any]) -> Arrays:
    return {
        name: value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value)
        for name, value in values.items()
    }


def doubled(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.double() if v.is_floating_point() else v for k, v in values.items()}


def noise_schedule(inputs: Arrays) -> Arrays:
    t = torch.from_numpy(inputs["t"])
    low, high = losses.sigma_ends(t)
    out = {
        "t": t,
        "total_noise": losses.total_noise(t),
        "rate_noise": losses.rate_noise(t),
        "move_chance": losses.move_chance(t),
        "loss_weight": losses.loss_weight(t),
        "importance_t": losses.importance_t(t),
        "sigma_min": low,
        "sigma_max": high,
        "eps": torch.tensor(losses.EPS),
    }
    return arrays_of(out)


def sample_t(inputs: Arrays) -> Arrays:
    out = {"sampling_eps": torch.tensor(losses.EPS)}
    for name, eps in tensors(inputs).items():
        batch = name.removeprefix("eps_")
        out[name] = eps
        out[f"t_{batch}_plain"] = losses.sample_t(eps)
        out[f"t_{batch}_importance"] = losses.sample_t(eps, importance=True)
    return arrays_of(out)


def subs(inputs: Arrays) -> Arrays:
    i = tensors(inputs)
    mask_id = int(i["mask_index"])
    xt = losses.mask_tokens(i["x0"], i["move_chance"], i["uniform"], mask_id)
    return arrays_of({**i, "xt": xt, "log_probs": losses.substitute(i["logits"], xt, mask_id)})


def timestep_density(inputs: Arrays) -> Arrays:
    """Inputs: uniform_in, sigma_grid and logit_normal_in_{mean}_{std}."""
    i = tensors(inputs)
    out = dict(i)
    for name in i:
        if name.startswith("logit_normal_in_"):
            out[name.replace("_in_", "_u_")] = torch.sigmoid(i[name])
    sigmas, timesteps = losses.train_table()
    out["index_0_1"] = index = (out["logit_normal_u_0_1"] * 1000).long()
    out["sigmas_0_1"], out["timesteps_0_1"] = sigmas[index], timesteps[index]
    for scale in (1.29, 0.5):
        name = "mode_u_scale_" + str(scale).replace(".", "p")
        out[name] = losses.mode_density(i["uniform_in"], scale)
    out["uniform_u"] = i["uniform_in"]
    grid = i["sigma_grid"]
    out["weighting_sigma_sqrt"] = grid**-2.0
    out["weighting_cosmap"] = losses.cosmap_weighting(grid)
    out["weighting_logit_normal"] = torch.ones_like(grid)
    return arrays_of(out)


def contrastive(inputs: Arrays) -> Arrays:
    i = tensors(inputs)
    image, text = (i[k].requires_grad_() for k in ("image_hidden", "text_hidden"))
    loss = losses.contrastive(image, text, float(i["temperature"]))
    grads = torch.autograd.grad(loss, (image, text))
    return arrays_of({**i, "loss": loss, "grad_image": grads[0], "grad_text": grads[1]})


def cosine(inputs: Arrays) -> Arrays:
    i = tensors(inputs)
    x = i["x"].requires_grad_()
    loss = losses.cosine_alignment(x, i["y"])
    return arrays_of({**i, "loss": loss, "grad_x": torch.autograd.grad(loss, x)[0]})


def gradnorm(inputs: Arrays) -> Arrays:
    i = tensors(inputs)
    x = i["x"].requires_grad_()
    losses.GradNorm.apply(x).backward(i["upstream"])
    return arrays_of({**i, "grad": x.grad})


SINGLE = {
    "noise_schedule": noise_schedule,
    "sample_t": sample_t,
    "subs": subs,
    "timestep_density": timestep_density,
    "contrastive": contrastive,
    "cosine": cosine,
    "gradnorm": gradnorm,
}


def text_loss(
    model: Transformer, encoder: StandInEncoder, inputs: Arrays, block_depth: int
) -> tuple[Arrays, dict, list[str]]:
    """Returns the file, its line of the index and the parameters without gradient."""
    i = tensors(inputs)
    out = losses.text_loss(
        model,
        encoder,
        i["x0"],
        i.get("latents"),
        i["eps_t"],
        i["mask_uniform"],
        block_depth,
        i.get("label_mask"),
    )
    names, parameters = zip(*model.named_parameters(), strict=True)
    grads = torch.autograd.grad(out["loss"], parameters, allow_unused=True)
    without = [name for name, grad in zip(names, grads, strict=True) if grad is None]
    line = {
        "loss": out["loss"].item(),
        "t": out["t"].tolist(),
        "masked": int(out["masked"].sum()),
    }
    given = {"mask_index": model.sizes.mask_id, "block_depth": block_depth}
    return arrays_of({**i, **given, **out}), line, without


def total_loss(
    model: Transformer,
    encoder: StandInEncoder,
    inputs: Arrays,
    block_depth: int,
    weights: Weights,
) -> dict[str, Any]:
    """Returns the file ("arrays"), "grads", "norms", "without" gradient, "line" and "floor"."""
    i = tensors(inputs)
    out = losses.total_loss(model, encoder, i, i, block_depth, weights)
    grads = _grads(model, out["total"])
    per_term = {
        term: {name: _norm(g) for name, g in _grads(model, out[f"loss_{term}"]).items()}
        for term in TERMS
    }
    line = {"total": out["total"].item()}
    line |= {term: out[f"loss_{term}"].item() for term in TERMS}
    line["dropped_rows"] = int(out["img_dropout_mask"].sum())
    line["timesteps"] = out["img_timesteps"].tolist()
    kept = {name: grad for name, grad in grads.items() if grad is not None}
    squares = sum(float(grad.double().square().sum()) for grad in kept.values())
    return {
        "arrays": arrays_of({**i, **out, "block_depth": block_depth}),
        "grads": arrays_of(kept),
        "norms": {"global_l2": squares**0.5, "per_term": per_term},
        "without": [name for name, grad in grads.items() if grad is None],
        "line": line,
        "floor": _floor(model, encoder, i, block_depth, weights, out, kept),
    }


def _grads(model: Transformer, value: Tensor) -> dict[str, Tensor | None]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    grads = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return dict(zip(names, grads, strict=True))


def _norm(grad: Tensor | None) -> float | None:
    return None if grad is None else float(grad.double().norm())


def _floor(model, encoder, inputs, block_depth, weights, single, grads) -> dict[str, Any]:
    """What float32 costs: the losses and gradients against float64."""
    exact = copy.deepcopy(model).double()
    wide = doubled(inputs)
    out = losses.total_loss(exact, encoder.double(), wide, wide, block_depth, weights)
    against = lambda key: abs(single[key].item() / out[key].item() - 1)
    peaks, norms = {}, []
    for name, grad in _grads(exact, out["total"]).items():
        if grad is not None:
            error = grads[name].double() - grad
            peaks[name] = float(error.abs().max() / grad.abs().max())
            norms.append(float(error.norm() / grad.norm()))
    return {
        "total": against("total"),
        "terms": {term: against(f"loss_{term}") for term in TERMS},
        "grad_max_abs_over_peak_worst5": sorted(peaks.items(), key=lambda pair: -pair[1])[:5],
        "grad_rel_l2_worst": max(norms),
    }


def train_steps(
    model: Transformer,
    encoder: StandInEncoder,
    batch: Arrays,
    draws: Arrays,
    settings: dict[str, Any],
    block_depth: int,
    weights: Weights,
) -> tuple[dict[str, Any], Arrays]:
    """Clipped AdamW steps on one batch with fresh draws; returns the JSON and the state dict."""
    model = copy.deepcopy(model)
    i, d = tensors(batch), tensors(draws)
    optimiser = torch.optim.AdamW(
        model.parameters(),
        betas=tuple(settings["betas"]),
        eps=settings["eps"],
        weight_decay=settings["weight_decay"],
    )
    steps = []
    for step in range(3):
        rate = settings["lr"] * min(1, step / settings["warmup_steps"])
        prefix = f"step{step}_"
        drawn = {k.removeprefix(prefix): v for k, v in d.items() if k.startswith(prefix)}
        out = losses.total_loss(model, encoder, i, drawn, block_depth, weights)
        optimiser.zero_grad(set_to_none=True)
        out["total"].backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        norm = torch.stack([grad.norm() for grad in grads]).norm()
        for grad in grads:
            grad.mul_(min(1.0, settings["grad_clip"] / norm.item()))
        optimiser.param_groups[0]["lr"] = rate
        optimiser.step()
        line = {"total": out["total"].item(), "grad_norm": norm.item(), "lr": rate}
        steps.append(line | {term: out[f"loss_{term}"].item() for term in TERMS})
    return {**settings, "steps": steps}, arrays_of(model.state_dict())
