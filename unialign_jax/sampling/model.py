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
from unialign_jax.models.autoencoder import AutoencoderConfig
from unialign_jax.models.functional import Functional, Params
from unialign_jax.models.latents import Latents
from unialign_jax.models.mmdit import MMDiT
from unialign_jax.models.mmdit_config import MMDiTConfig
from unialign_jax.models.t5 import T5Config, T5Encoder

if TYPE_CHECKING:
    from unialign_jax.data.tokenizer import TextTokenizer


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
      latents: what is diffused: pixels, or the latents of `params["vae"]`.
    """

    transformer: Functional
    text_encoder: Functional
    tokenizer: TextTokenizer
    config: MMDiTConfig
    image_size: int
    text_length: int
    sample: SampleConfig
    latents: Latents = dataclasses.field(default_factory=Latents)

    @property
    def networks(self) -> dict[str, Functional]:
        """Every network by the name of its parameters."""
        found = {"transformer": self.transformer, "text_encoder": self.text_encoder}
        if self.latents.autoencoder is not None:
            found["vae"] = self.latents.autoencoder
        return found

    @property
    def patch_pixels(self) -> int:
        """Side of a patch in pixels: heights and widths of images are multiples of it."""
        return self.config.patch_size * self.latents.factor

    @property
    def largest_side(self) -> int:
        """Height and width of an image, at most, in pixels."""
        return self.patch_pixels * self.config.position_table_size


def build_model(
    config: Mapping[str, Any], tokenizer: TextTokenizer | None, *, dtype: str | None = None
) -> Model:
    """The model of a resolved config, as structure and shapes.

    Args:
      config: nested dicts with the sections `model`, `text_encoder`, `data` and `sample`, and
        `autoencoder` where pixels are not the latents.
      tokenizer: the one that the model was trained with; None where only shapes are wanted.
      dtype: compute dtype of the transformer and the text encoder in place of the config's.

    Raises:
      UserError: a section or value that is missing or wrong, or channels of the network that are
        not those of the latents.
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
    latents = Latents(float(sections["data"].get("pixel_scale", 1.0)))
    if config.get("autoencoder"):
        section = dict(config["autoencoder"])
        latents = Latents.of(to_dataclass(AutoencoderConfig, section, where="autoencoder"))
    if transformer.channels != latents.channels:
        raise UserError(
            f"model.channels is {transformer.channels}, but the latents have {latents.channels} "
            f"channels: {_what_latents_are(latents)}"
        )
    return Model(
        transformer=functional.build(lambda rngs: MMDiT(transformer, rngs)),
        text_encoder=functional.build(lambda rngs: T5Encoder(encoder, rngs)),
        tokenizer=cast(Any, tokenizer),
        config=transformer,
        image_size=sections["data"]["image_size"],
        text_length=sections["data"]["text_length"],
        sample=to_dataclass(SampleConfig, sections["sample"], where="sample"),
        latents=latents,
    )


def _what_latents_are(latents: Latents) -> str:
    if latents.config is None:
        return (
            "without a section `autoencoder` they are pixels. A model that was converted or "
            "started (init_from) together with its autoencoder has that section."
        )
    return "they are those of the section `autoencoder`."


def check_parameters(model: Model, params: Params, where: str | Path) -> None:
    """Compares names and shapes of parameters, or of their shapes, with what the networks take.

    Raises:
      UserError: they differ; lists the first differences.
    """
    want = _shapes({name: network.abstract for name, network in model.networks.items()})
    have = _shapes(params)
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
