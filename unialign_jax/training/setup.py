"""From a resolved config to everything that a step needs, without allocating a parameter."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import Mesh

from unialign_jax.config import suggestion, to_dataclass
from unialign_jax.data.features import FeatureCache
from unialign_jax.data.pipeline import DataConfig
from unialign_jax.data.prepared import DATASET_FILE, Prepared
from unialign_jax.errors import UserError
from unialign_jax.models.checks import check_dtype
from unialign_jax.objective import TextTokens
from unialign_jax.objective_config import ObjectiveConfig
from unialign_jax.parallel import rules
from unialign_jax.parallel.mesh import MeshConfig, make_mesh
from unialign_jax.sampling.model import Model, build_model
from unialign_jax.training import start
from unialign_jax.training import state as train_state
from unialign_jax.training.gradients import Spread
from unialign_jax.training.optimizer import OptimizerConfig, make_optimizer
from unialign_jax.training.state import TrainState
from unialign_jax.training.step import StepConfig

if TYPE_CHECKING:
    import optax

    from unialign_jax.data.tokenizer import TextTokenizer

SECTIONS = (
    "seed",
    "model",
    "text_encoder",
    "objective",
    "data",
    "train",
    "optimizer",
    "ema",
    "checkpoint",
    "mesh",
    "sample",
    "autoencoder",
    "init_from",
)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The `train` section.

    Attributes:
        steps: where the run ends.
        global_batch: records per step over all devices.
        micro_batches: pieces whose gradients are accumulated within a step.
        reduce_dtype: in which gradients are summed over `mesh.fsdp`; "bfloat16" sends half.
        log_every: steps between lines of `metrics.jsonl`. A line is about the task of its step:
            with a factor in common with the mixture's period, some tasks may never have one.
        sample_every: steps between sample grids; 0 for none.
    """

    steps: int
    global_batch: int
    micro_batches: int = 1
    reduce_dtype: str = "float32"
    log_every: int = 10
    sample_every: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "global_batch", "micro_batches", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} is {getattr(self, name)}: at least 1")
        check_dtype("reduce_dtype", self.reduce_dtype)


@dataclasses.dataclass(frozen=True)
class EmaConfig:
    """The `ema` section: decay of the moving average (0 keeps none), and its warm-up."""

    decay: float = 0.0
    warmup: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"ema.decay is {self.decay}: from 0 to below 1")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """The `checkpoint` section: steps between saves, and how many of the latest stay (0: all)."""

    every_steps: int = 1000
    keep: int = 3

    def __post_init__(self) -> None:
        if self.every_steps < 1:
            raise ValueError(f"checkpoint.every_steps is {self.every_steps}: at least 1")


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a run is made of.

    Attributes:
        config: the resolved config as nested dicts.
        train, checkpoint, data: their sections.
        mesh: the device mesh.
        model: the networks and the tokenizer.
        tx, schedule: optimiser and learning rate.
        step: what a step needs beside the model.
        abstract: the train state as ShapeDtypeStruct leaves with shardings.
    """

    config: dict[str, Any]
    train: TrainConfig
    checkpoint: CheckpointConfig
    data: DataConfig
    mesh: Mesh
    model: Model
    tx: optax.GradientTransformation
    schedule: optax.Schedule
    step: StepConfig
    abstract: TrainState

    def init(self) -> TrainState:
        """A fresh state, made in its shardings: no device ever holds more than its part.

        Raises:
            UserError: the bundle to start from (`init_from`) is damaged or of other sizes.
        """
        given: dict[str, Any] = {}
        if self.config.get("init_from"):
            given = start.load(self.config["init_from"], self.abstract.params)
        make = jax.jit(
            lambda given: _create(self.model, self.tx, self.step, given),
            out_shardings=self.shardings,
        )
        return make(given)

    @property
    def shardings(self) -> TrainState:
        """The sharding of every leaf of the state."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract)

    @property
    def spread(self) -> Spread | None:
        """How the parameters lie on the mesh; None for one device."""
        if self.mesh.size == 1:
            return None
        specs = jax.tree.map(lambda leaf: leaf.sharding.spec, self.abstract.params)
        return Spread(self.mesh, specs, self.train.reduce_dtype)


def check_sections(config: Mapping[str, Any]) -> None:
    """Refuses a top-level key that no part of a run reads.

    Raises:
        UserError: names the key and the nearest known one.
    """
    for key in config:
        if key not in SECTIONS:
            raise UserError(f"unknown config key `{key}`{suggestion(key, SECTIONS)}.")


def make_setup(
    config: Mapping[str, Any], tokenizer: TextTokenizer | None, devices: list | None = None
) -> Setup:
    """Builds all parts of a run from its resolved config.

    Args:
        config: nested dicts, as `config.to_plain` gives them.
        tokenizer: of the records; without one the setup can be described, not trained.
        devices: all of the process's if None.

    Raises:
        UserError: a key that does not exist, values that do not fit each other or the devices.
    """
    check_sections(config)
    data = to_dataclass(DataConfig, config.get("data", {}), where="data")
    train = to_dataclass(TrainConfig, config.get("train", {}), where="train")
    ema = to_dataclass(EmaConfig, config.get("ema", {}), where="ema")
    objective = to_dataclass(ObjectiveConfig, config.get("objective", {}), where="objective")
    optimizer = to_dataclass(OptimizerConfig, config.get("optimizer", {}), where="optimizer")
    checkpoint = to_dataclass(CheckpointConfig, config.get("checkpoint", {}), where="checkpoint")
    mesh = make_mesh(to_dataclass(MeshConfig, config.get("mesh", {}), where="mesh"), devices)
    model = build_model(config, tokenizer)
    _check_sizes(model, train, data, mesh)
    _check_features(model, data, objective)
    if not 1 <= objective.align_depth <= model.config.layers:
        raise UserError(
            f"objective.align_depth is {objective.align_depth}: a block from 1 to model.layers, "
            f"{model.config.layers}."
        )
    if not 0 <= config.get("seed", 0) < 2**32:
        raise UserError(f"seed is {config['seed']}: a whole number from 0 to 2^32 - 1.")

    tx, schedule = make_optimizer(optimizer)
    step = StepConfig(
        objective=objective,
        tokens=_text_tokens(tokenizer, data.text_length, model.config.vocab_size),
        seed=config.get("seed", 0),
        micro_batches=train.micro_batches,
        latents=model.latents,
        train_text_encoder=bool(config.get("text_encoder", {}).get("train", False)),
        ema_decay=ema.decay,
        ema_warmup=ema.warmup,
    )
    return Setup(
        config=dict(config),
        train=train,
        checkpoint=checkpoint,
        data=data,
        mesh=mesh,
        model=model,
        tx=tx,
        schedule=schedule,
        step=step,
        abstract=_abstract_state(model, tx, step, mesh),
    )


def _text_tokens(tokenizer: TextTokenizer | None, length: int, vocabulary: int) -> TextTokens:
    if tokenizer is None:
        # Enough for shapes and for compiling: `plan` has no data set.
        return TextTokens(mask_id=vocabulary - 1, end_id=0, null_ids=((0,) * length,))
    null_ids = tuple(tuple(int(i) for i in row) for row in tokenizer.null_ids(length))
    return TextTokens(tokenizer.mask_id, tokenizer.end_id, null_ids)


def _create(
    model: Model,
    tx: optax.GradientTransformation,
    step: StepConfig,
    given: Mapping[str, Any] | None = None,
) -> TrainState:
    """The state of a run that has not begun; parts that are `given` are not drawn."""
    keys = jax.random.split(jax.random.key(step.seed), 2)
    keys = {"transformer": keys[0], "text_encoder": keys[1], "vae": keys[0]}
    params = {
        name: given[name] if given and name in given else network.init(keys[name])
        for name, network in model.networks.items()
    }
    return train_state.create(
        params, tx, train_text_encoder=step.train_text_encoder, with_ema=step.ema_decay > 0
    )


def _abstract_state(
    model: Model, tx: optax.GradientTransformation, step: StepConfig, mesh: Mesh
) -> TrainState:
    """Shapes and shardings of the state: parameters by the rules, moments and EMA like them."""
    abstract = jax.eval_shape(lambda: _create(model, tx, step))
    axes = {name: network.axes for name, network in model.networks.items()}
    params = rules.shardings(axes, abstract.params, mesh)
    part = train_state.trainable(params, train_text_encoder=step.train_text_encoder)
    shapes = train_state.trainable(abstract.params, train_text_encoder=step.train_text_encoder)
    places = TrainState(
        step=rules.replicated(mesh),
        params=params,
        opt_state=rules.optimizer_shardings(abstract.opt_state, shapes, part, mesh),
        ema=None if abstract.ema is None else part,
    )
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        abstract,
        places,
    )


def _check_sizes(model: Model, train: TrainConfig, data: DataConfig, mesh: Mesh) -> None:
    """Refuses numbers that cannot work together, before anything is compiled."""
    encoder = model.text_encoder.abstract["token_embedding"]["embedding"]
    if model.config.text_width != encoder.shape[1]:
        raise UserError(
            f"model.text_width is {model.config.text_width} and text_encoder.width is "
            f"{encoder.shape[1]}: the network reads the encoder's output, so they must be equal."
        )
    tokens = model.tokenizer.vocab_size if model.tokenizer is not None else 0
    for section, size in (("model", model.config.vocab_size), ("text_encoder", encoder.shape[0])):
        if size < tokens:
            raise UserError(
                f"{section}.vocab_size is {size}, but the tokenizer of the data has {tokens} "
                f"tokens. Set {section}.vocab_size to {tokens}, or prepare the data with a "
                "smaller tokenizer."
            )
    if data.image_size % model.patch_pixels or data.image_size > model.largest_side:
        raise UserError(
            f"data.image_size {data.image_size} is not a multiple of {model.patch_pixels} pixels "
            f"(model.patch_size {model.config.patch_size} times {model.latents.factor} pixels per "
            f"latent) up to {model.largest_side}."
        )
    rows = train.global_batch // train.micro_batches
    if train.global_batch % train.micro_batches:
        raise UserError(
            f"train.global_batch {train.global_batch} is not a multiple of train.micro_batches "
            f"{train.micro_batches}."
        )
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % parts:
        raise UserError(
            f"train.global_batch / train.micro_batches = {rows} samples cannot be split over "
            f"{parts} devices (mesh.data x mesh.fsdp): make it a multiple of {parts}."
        )


def _check_features(model: Model, data: DataConfig, objective: ObjectiveConfig) -> None:
    """Refuses cached features that the losses cannot use; passes where there are no data yet."""
    if not data.features or not (Path(data.path) / DATASET_FILE).is_file():
        return
    cache = FeatureCache(Prepared(data.path), data.features)
    for what, width in (("image", cache.image_shape[-1]), ("text", cache.text_width)):
        if model.config.adapter_out != width:
            raise UserError(
                f"model.adapter_out is {model.config.adapter_out}, but the {what} features in "
                f"{cache.directory} have {width} channels: set model.adapter_out to {width}."
            )
    fits = "tokens" if cache.grid else "pooled"
    made, needed = ("with", "without") if cache.grid else ("without", "with")
    if objective.image_alignment != fits:
        raise UserError(
            f"objective.image_alignment is {objective.image_alignment!r}, but the features in "
            f"{cache.directory} were made {made} --grid: set objective.image_alignment to "
            f"{fits!r}, or run `unialign cache` {needed} --grid and name its features in "
            "data.features."
        )
