"""Group `tiny_transformer`: the network's outputs and intermediates, case by case."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unialign_jax.convert import names
from unialign_jax.models import blocks, functional, layers
from unialign_jax.models.mmdit import Branch, Heads, MMDiT
from unialign_jax.models.mmdit_config import MMDiTConfig
from unialign_jax.parity.golden import GoldenDirectory, GoldenFile, compare, tolerance_for

GROUP = "tiny_transformer"


def nhwc(x: Any) -> Any:
    """[B, C, H, W] -> [B, H, W, C]."""
    return np.transpose(x, (0, 2, 3, 1))


def nchw(x: Any) -> Any:
    """[B, H, W, C] -> [B, C, H, W]; leading axes are kept."""
    return np.moveaxis(np.asarray(x), -1, -3)


class Network:
    """A golden network: config, parameters, and compiled functions of it."""

    def __init__(self, goldens: GoldenDirectory, folder: str = GROUP, **switches: Any):
        config = goldens.json(f"{folder}/config.json")
        extra = goldens.json(f"{folder}/extra_config.json")
        file = goldens.open(f"{folder}/diffusion_pytorch_model.safetensors")
        self.mask_id: int = extra["mask_index"]
        self.config: MMDiTConfig = names.config_from_json(config, extra, **switches)
        self.functional = functional.build(lambda rngs: MMDiT(self.config, rngs))
        self.params = names.transformer_from_torch(file.all(), self.config)
        self.position_table = file.get(names.POSITION_BUFFER)

    def bind(self, params: Any = None) -> MMDiT:
        return self.functional.bind(self.params if params is None else params)


def read_branch(file: GoldenFile, prefix: str = "in_") -> Branch:
    """Builds a branch from `PREFIXtext`, `timestep`, and where there `latents` and `cond_k`."""
    conditions = []
    while f"{prefix}cond_{len(conditions)}" in file:
        conditions.append(nhwc(file.get(f"{prefix}cond_{len(conditions)}")))
    latents = nhwc(file.get(f"{prefix}latents")) if f"{prefix}latents" in file else None
    return Branch(
        file.get(f"{prefix}text"), file.get(f"{prefix}timestep"), latents, tuple(conditions)
    )


def verify(goldens: GoldenDirectory) -> None:
    """Compares every case of the group."""
    network = Network(goldens)
    check_positions(goldens, network, f"{GROUP}/weights")
    index = goldens.json(f"{GROUP}/index.json")
    for name in goldens.files(f"{GROUP}/cases/", ".npz"):
        case = name.split("/")[-1].removesuffix(".npz")
        file = goldens.open(name, f"{GROUP}/{case}")
        depth = index.get(case, {}).get("block_depth")
        branch = read_branch(file)
        tolerance = tolerance_for(branch.timestep)
        compute = jax.jit(lambda p, b, d=depth: (_outputs(network, p, b, d), _trace(network, p, b)))
        for values in compute(network.params, branch):
            file.check_present(values, tolerance)
    _verify_float16(goldens)


def check_positions(goldens: GoldenDirectory, network: Network, case: str) -> None:
    """Compares the stored positional table with its formula."""
    ours = names.position_buffer(network.config)
    goldens.add(compare(case, names.POSITION_BUFFER, ours, network.position_table, 1e-6))


def _outputs(network: Network, params: Any, branch: Branch, depth: int | None) -> dict[str, Any]:
    has_image, mid = branch.latents is not None, depth is not None
    heads = Heads(
        velocity=has_image,
        logits=True,
        image_hidden=True,
        text_hidden=True,
        mid_image=mid,
        mid_text=mid,
    )
    out = network.bind(params)(branch, heads, depth)
    # Without an image the reference returns the plain hidden state in place of the velocity.
    image = jnp.moveaxis(out.velocity, -1, 1) if has_image else out.image_hidden
    outputs = {
        "out_image": image,
        "out_text_logits": out.logits,
        "out_hidden": out.image_hidden,
        "out_text_hidden": out.text_hidden,
    }
    return outputs | ({"out_mid_image": out.mid_image, "out_mid_text": out.mid_text} if mid else {})


def _trace(network: Network, params: Any, branch: Branch) -> dict[str, Any]:
    """Intermediates, block by block rather than by the scan, under the recorded names."""
    model = network.bind(params)
    image, text = model.embed(branch)
    trace: dict[str, Any] = {"trace_context": text}
    if branch.latents is not None:
        for k, latents in enumerate((branch.latents, *branch.conditions)):
            trace[f"trace_patch_tokens_{k}"] = model.embed_image(latents)
    trace["trace_time_sincos"] = layers.time_features(jnp.asarray(branch.timestep))
    trace["trace_temb"] = temb = model.embed_time(jnp.asarray(branch.timestep))
    modulations = model.blocks.modulations(jax.nn.silu(temb))
    for i in range(network.config.layers):
        block = model.blocks.layer(i)
        mods = (modulations[0][i], modulations[1][i])
        if i == 0:
            trace |= _first_block(block, image, text, mods)
        image, text = block(image, text, mods)
        trace |= {f"trace_block{i}_hidden": image, f"trace_block{i}_text": text}
    return trace


def _first_block(
    block: blocks.Block, image: Any, text: Any, mods: tuple[Any, Any]
) -> dict[str, Any]:
    trace: dict[str, Any] = {}
    for norm, x, mod in (("norm1", image, mods[0]), ("norm1_context", text, mods[1])):
        shift, scale = mod[:, blocks.SHIFT_ATTENTION], mod[:, blocks.SCALE_ATTENTION]
        trace[f"trace_block0_{norm}_x"] = blocks.modulate(x, shift, scale)
        for key, part in (
            ("gate_msa", blocks.GATE_ATTENTION),
            ("shift_mlp", blocks.SHIFT_MLP),
            ("scale_mlp", blocks.SCALE_MLP),
            ("gate_mlp", blocks.GATE_MLP),
        ):
            trace[f"trace_block0_{norm}_{key}"] = mod[:, part]
    heads = block.joint_attention(image, text, mods, None)
    attended = block.image.attended(heads[0]), block.text.attended(heads[1])
    trace["trace_block0_attn_image"], trace["trace_block0_attn_text"] = attended
    return trace


def _verify_float16(goldens: GoldenDirectory) -> None:
    """The published code's float16 time features, in the cases for which they are recorded."""
    name = f"{GROUP}/float16_time_features.npz"
    if name not in goldens.inventory:
        return
    network = Network(goldens, time_features_float16=True)
    file = goldens.open(name)
    suffix = "_out_image"
    for case in sorted(k.removesuffix(suffix) for k in file.arrays if k.endswith(suffix)):
        branch = read_branch(goldens.open(f"{GROUP}/cases/{case}.npz"))
        compute = jax.jit(lambda p, b: _outputs(network, p, b, None))
        outputs = compute(network.params, branch)
        for key in ("out_image", "out_text_logits"):
            file.check(f"{case}_{key}", outputs[key], tolerance_for(branch.timestep))
