"""Random inputs for goldens of any size: cases, losses, samplers."""

from __future__ import annotations

import dataclasses

import numpy as np

from tests.peer.golden_losses import Arrays
from tests.peer.losses import Weights
from unialign_jax.convert.torch_layers import Sizes
from unialign_jax.convert.torch_model import Transformer

END_TOKEN = 1
ODD_SIZES = Sizes(
    heads=3,
    head_dim=12,
    layers=4,
    patch=2,
    channels=3,
    text_width=20,
    vocab=61,
    sample_size=10,
    table_size=7,
    null_tokens=5,
    adapter_hidden=28,
    adapter_out=30,
    mask_id=37,
)
ODD_WEIGHTS = Weights(caption=0.3, contrastive=0.07, alignment=0.15)


@dataclasses.dataclass(frozen=True)
class Variant:
    """A choice of sizes. Patch counts are (rows, columns), at most the table's side.

    The defaults differ from the stored goldens in everything that the layout leaves open: three
    heads of 12, an odd table that no crop meets in the middle, a mask id amid the vocabulary.
    """

    seed: int = 1
    sizes: Sizes = ODD_SIZES
    block_depth: int = 3
    batch: int = 3
    text_length: int = 9
    gen: tuple[int, int] = (4, 3)
    edit: tuple[int, int] = (2, 5)
    compose: tuple[int, int] = (3, 2)
    weights: Weights = ODD_WEIGHTS


class Draw:
    """Random arrays of a variant."""

    def __init__(self, variant: Variant):
        self.variant, self.sizes = variant, variant.sizes
        self.rng = np.random.default_rng(variant.seed)

    def normal(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape).astype(np.float32)

    def uniform(self, *shape: int) -> np.ndarray:
        return self.rng.random(shape, dtype=np.float32)

    def ids(self, *shape: int) -> np.ndarray:
        """Tokens without the mask, which no clean text contains."""
        ids = self.rng.integers(0, self.sizes.vocab - 1, shape)
        return ids + (ids >= self.sizes.mask_id)

    def latents(self, batch: int, grid: tuple[int, int]) -> np.ndarray:
        p = self.sizes.patch
        return self.normal(batch, self.sizes.channels, grid[0] * p, grid[1] * p)

    def text(self, batch: int, length: int) -> np.ndarray:
        return self.normal(batch, length, self.sizes.text_width)

    def conditions(self, prefix: str, count: int, latents: np.ndarray) -> Arrays:
        return {f"{prefix}_{k}": self.normal(*latents.shape) for k in range(count)}

    def mask_uniform(self, eps_t: np.ndarray, length: int) -> np.ndarray:
        """Two columns lie just above and just below the threshold 0.999 t."""
        batch = len(eps_t)
        t = 0.999 * ((eps_t / batch + np.arange(batch) / batch) % 1) + 1e-3
        uniform = self.uniform(batch, length)
        uniform[:, 2], uniform[:, length - 2] = 0.9995 * t, 0.9985 * t
        return uniform.astype(np.float32)

    def state(self) -> Arrays:
        """Parameters that leave every path its share, those that start at zero included."""
        state = {}
        for name, value in Transformer(self.sizes).state_dict().items():
            shape = tuple(value.shape)
            if name == "pos_embed.pos_embed":
                state[name] = value.numpy()
            elif name.endswith("weight"):
                state[name] = self.normal(*shape) / np.float32(np.sqrt(np.prod(shape[1:])))
            else:
                state[name] = np.float32(0.2) * self.normal(*shape)
        return state


def cases(draw: Draw) -> dict[str, tuple[dict, Arrays]]:
    v, table = draw.variant, draw.sizes.table_size
    whole, last = (table, table), draw.sizes.layers
    plan = {  # data type, depth, patches, conditions, text length, timesteps
        "gen_first": ("img_gen", 1, v.gen, 0, 6, [0.0, 987.5]),
        "gen_last": ("img_gen", last, v.edit, 0, 4, [12.0]),
        "gen_whole_table": ("img_gen", 2, whole, 0, 3, [99.0]),
        "gen_no_type": (None, None, v.compose, 0, 5, [400.25, 3.0, 0.0]),
        "edit_middle": ("img_edit", 2, v.edit, 1, 7, [640.0, 8.5]),
        "edit_nodepth": ("img_edit", None, v.gen, 1, 8, [50.0]),
        "compose_first": ("img_compose", 1, v.compose, 3, 5, [1000.0, 0.0]),
        "compose_last": ("img_compose", last, v.gen, 3, 2, [77.0]),
        "text_only_middle": ("text_only", 2, None, 0, 6, [0.0, 31.0]),
        "text_only_nodepth": ("text_only", None, None, 0, 9, [700.0]),
    }
    cases = {}
    for name, (data_type, depth, grid, conditions, length, times) in plan.items():
        arrays = {"in_text": draw.text(len(times), length), "in_timestep": np.float32(times)}
        if grid is not None:
            arrays["in_latents"] = draw.latents(len(times), grid)
            arrays |= draw.conditions("in_cond", conditions, arrays["in_latents"])
        cases[name] = ({"data_type": data_type, "block_depth": depth}, arrays)
    return cases


def _step_draws(draw: Draw, latents: np.ndarray) -> Arrays:
    batch, length = len(latents), draw.variant.text_length
    eps_t = draw.uniform(batch)
    dropout = draw.uniform(batch)
    dropout[0] = 0.05  # the text of one row gives way to the null text
    return {
        "img_noise": draw.normal(*latents.shape),
        "img_normal": draw.normal(batch),
        "img_dropout_uniform": dropout,
        "txt_eps_t": eps_t,
        "txt_mask_uniform": draw.mask_uniform(eps_t, length),
    }


def losses(draw: Draw) -> dict[str, Arrays]:
    v, sizes = draw.variant, draw.sizes
    b, length, width = v.batch, v.text_length, sizes.width
    t = np.float32([0, 1e-5, 1e-3, *np.linspace(0.05, 1, 17)])
    losses = {
        "noise_schedule": {"t": t},
        "sample_t": {f"eps_b{n}": draw.uniform(n) for n in (1, 3, 8)},
        "subs": {
            "x0": draw.ids(2, 6),
            "move_chance": np.float32([[0.3], [0.8]]),
            "uniform": draw.uniform(2, 6),
            "logits": draw.normal(2, 6, sizes.vocab),
            "mask_index": np.array(sizes.mask_id),
        },
        "timestep_density": {
            "uniform_in": draw.uniform(20),
            "sigma_grid": np.linspace(0.002, 0.999, 23, dtype=np.float32),
            "logit_normal_in_0_1": draw.normal(20),
            "logit_normal_in_m0p5_0p8": np.float32(0.8) * draw.normal(20) - np.float32(0.5),
        },
        "contrastive": {
            "image_hidden": draw.normal(b, 5, width),
            "text_hidden": draw.normal(b, 7, width),
            "temperature": np.float32(0.07),
        },
        "cosine": {"x": draw.normal(b, width), "y": draw.normal(b, width)},
        "gradnorm": {"x": draw.normal(2, 7), "upstream": draw.normal(2, 7)},
    }
    eps_t = draw.uniform(b)
    plain = {
        "x0": draw.ids(b, length),
        "eps_t": eps_t,
        "mask_uniform": draw.mask_uniform(eps_t, length),
    }
    seen = {"latents": draw.latents(b, v.gen)}
    labels = {"label_mask": (np.arange(length)[None] >= np.arange(b)[:, None] + 2).astype(np.int64)}
    losses["text_loss_plain"] = plain | seen
    losses["text_loss_label_mask"] = plain | seen | labels
    losses["text_loss_no_image"] = plain
    for task, count in (("gen", 0), ("edit", 1), ("compose", 3)):
        latents = draw.latents(b, getattr(v, task))
        losses[f"total_loss_{task}"] = {
            "caption_ids": draw.ids(b, length),
            "instruction_ids": draw.ids(b, length),
            "target_latents": latents,
            **draw.conditions("cond_latents", count, latents),
            "feat_text": draw.normal(b, sizes.adapter_out),
            "feat_image": draw.normal(b, sizes.adapter_out),
            **_step_draws(draw, latents),
        }
    latents = losses["total_loss_gen"]["target_latents"]
    losses["train3_draws"] = {
        f"step{i}_{key}": value
        for i in range(3)
        for key, value in _step_draws(draw, latents).items()
    }
    return losses


def samplers(draw: Draw) -> dict[str, Arrays]:
    v, sizes = draw.variant, draw.sizes
    samplers = {}
    for task, count, steps, guidance in (
        ("gen", 0, 3, 1.0),
        ("gen", 0, 6, 5.0),
        ("edit", 1, 5, 9.0),
        ("compose", 3, 4, 2.5),
    ):
        latents = draw.latents(2, getattr(v, task))
        name = f"flow_{task}_steps{steps}_cfg{str(guidance).replace('.', 'p')}"
        samplers[name] = {
            "in_latents": latents,
            "in_prompt_embeds": draw.text(2, 6),
            "in_negative_embeds": draw.text(2, 6),
            **draw.conditions("in_cond", count, latents),
            "guidance": np.float32(guidance),
            "shift": np.float32(3),
            "steps": np.array(steps),
        }
    length = v.text_length + 2
    for kind in ("ddpm_cache", "ddpm"):
        for label, steps, batch, prompt in (
            ("", 6, 1, 0),
            ("_prompt", 14, 1, 3),
            ("_batch", 14, 3, 0),
            ("_left_masked", 10, 1, 3),
        ):
            uniforms = draw.uniform(steps, batch, length, sizes.vocab)
            if label == "_left_masked":
                uniforms[:, :, [length - 4, length - 1], sizes.mask_id] = np.float32(0.99999994)
            question = np.append(draw.ids(prompt - 1), END_TOKEN) if prompt else np.zeros(0, int)
            samplers[f"text_{kind}{label}_steps{steps}"] = {
                "in_latents": draw.latents(batch, v.gen),
                "uniforms": uniforms,
                "prompt_tokens": question,
            }
    tokens = draw.ids(1, length)
    tokens[:, ::2] = sizes.mask_id
    samplers["text_forward"] = {"in_latents": draw.latents(1, v.gen), "tokens": tokens}
    return samplers
