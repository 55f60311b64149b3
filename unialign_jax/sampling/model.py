"""A model as sampling needs it: networks, tokenizer, sizes, defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import jax

from unialign_jax.config import to_dataclass
from unialign_jax.diffusion import flow
from unialign_jax.errors import UserError, bullets
from unialign_jax.models import functional
from unialign_jax.models.functional import Functional, Params
from unialign_jax.models.mmdit import MMDiT
from unialign_jax.models.mmdit_config import MMDiTConfig
from unialign_jax.models.t5 import T5Config, T5Encoder

if TYPE_CHECKING:
    from unialign_jax.data.tokenizer import TextTokenizer

# What the reference's demonstrations and benchmark steer away from (uniAlignment.md 2.10). Small
# models trained on few photographs have no idea of these words; for them the null text is better.
REFERENCE_NEGATIVE_PROMPT = (
    "low quality, blurry, low resolution, backlit, cartoon, animated, deformed, oversaturated, "
    "undersaturated, out of frame"
)
PIXEL_CHANNELS = 3


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """The `sample` section of a config: what a call that does not say otherwise gets.

    Attributes:
      steps: Euler steps of an image.
      guidance: scale of classifier-free guidance; 1 or less is none.
      shift: shift of the sampling noise levels.
      table: one of `flow.TABLES`; "double_shifted" is the reference's.
      text_steps: steps of a caption or answer.
      text_temperature: of their draws; 1 is the reference, 0 takes the most probable token.
      negative: text to be guided away from; "" is the null text that training drops prompts to.
      prompts: prompts of the sample grids during training; empty takes records of the data set.
    """

    steps: int = 28
    guidance: float = 7.0
    shift: float = 3.0
    table: str = "double_shifted"
    text_steps: int = 64
    text_temperature: float = 1.0
    negative: str = ""
    prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.steps < 1 or self.text_steps < 1:
            raise ValueError("steps and text_steps must be at least 1")
        if not 0 <= self.text_temperature < float("inf"):
            raise ValueError(f"text_temperature is {self.text_temperature}: a number from 0")
        if self.table not in flow.TABLES:
            raise ValueError(f"table is {self.table!r}; one of {', '.join(flow.TABLES)}")


@dataclasses.dataclass(frozen=True)
class Model:
    """Everything about a model but its parameters.

    Attributes:
      transformer: the network; its parameters are `params["transformer"]`.
      text_encoder: ids -> embeddings; `params["text_encoder"]`.
      tokenizer: text <-> ids.
      config: of the transformer.
      image_size: side of the square images it was trained on, in pixels.
      text_length: tokens L of every text.
      sample: defaults for sampling.
      pixel_scale: of pixels as latents, see `models.pixels`.
    """

    transformer: Functional
    text_encoder: Functional
    tokenizer: TextTokenizer
    config: MMDiTConfig
    image_size: int
    text_length: int
    sample: SampleConfig
    pixel_scale: float = 1.0


def build_model(
    config: Mapping[str, Any], tokenizer: TextTokenizer | None, *, dtype: str | None = None
) -> Model:
    """The model of a resolved config, as structure and shapes.

    Args:
      config: nested dicts with the sections `model`, `text_encoder`, `data` and `sample`.
      tokenizer: the one that the model was trained with; None where only shapes are wanted.
      dtype: compute dtype of both networks in place of the config's.

    Raises:
      UserError: a section or value that is missing or wrong.
    """
    sections = {}
    for name in ("model", "text_encoder", "data", "sample"):
        if not isinstance(config.get(name), Mapping):
            raise UserError(f"the config has no section `{name}`.")
        sections[name] = dict(config[name])
    if dtype is not None:
        sections["model"]["dtype"] = sections["text_encoder"]["dtype"] = dtype
    transformer = to_dataclass(MMDiTConfig, sections["model"], where="model")
    encoder = to_dataclass(
        T5Config, sections["text_encoder"], where="text_encoder", ignore=("train",)
    )
    for name in ("image_size", "text_length"):
        if not isinstance(sections["data"].get(name), int):
            raise UserError(f"config key `data.{name}` is missing or no whole number.")
    return Model(
        transformer=functional.build(lambda rngs: MMDiT(transformer, rngs)),
        text_encoder=functional.build(lambda rngs: T5Encoder(encoder, rngs)),
        tokenizer=cast(Any, tokenizer),
        config=transformer,
        image_size=sections["data"]["image_size"],
        text_length=sections["data"]["text_length"],
        sample=to_dataclass(SampleConfig, sections["sample"], where="sample"),
        pixel_scale=float(sections["data"].get("pixel_scale", 1.0)),
    )


def require_pixels(model: Model) -> None:
    """Refuses models whose latents are those of an autoencoder.

    Raises:
      UserError: the model does not work on pixels.
    """
    if model.config.channels != PIXEL_CHANNELS:
        raise UserError(
            f"model.channels is {model.config.channels}: this version samples models of pixels "
            f"({PIXEL_CHANNELS} channels); it has no autoencoder to decode latents with."
        )


def check_parameters(model: Model, params: Params, where: str | Path) -> None:
    """Compares names and shapes of parameters with what the networks take.

    Raises:
      UserError: they differ; lists the first differences.
    """
    wanted = {
        "transformer": model.transformer.abstract,
        "text_encoder": model.text_encoder.abstract,
    }
    want, have = _shapes(wanted), _shapes(params)
    wrong = [
        f"{name}: the config has {want.get(name, 'none')}, the checkpoint {have.get(name, 'none')}"
        for name in sorted(want.keys() | have.keys())
        if want.get(name) != have.get(name)
    ]
    if wrong:
        raise UserError(f"{where}: the checkpoint does not fit the config:\n{bullets(wrong, 10)}")


def _shapes(tree: Params) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(str(k.key) for k in path): tuple(leaf.shape) for path, leaf in leaves}
