"""The dual-stream multimodal diffusion transformer (MMDiT) of UniAlignment.

One network, two streams of tokens with their own weights, joint attention in every block:
an image stream (noisy or clean image, then 0 to 3 condition images) and a text stream. It is
Stable Diffusion 3's MMDiT with both streams full to the last block, a text head, and two semantic
adapters that read the streams at mid-depth (arXiv 2509.23760, figure 2).

Layers are stacked and scanned. A training step asks for two branches of the same weights; they
share one scan, so that each layer's weights are read (and, sharded, gathered) once.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx

from unialign_jax.diffusion import flow
from unialign_jax.models import layers
from unialign_jax.models.blocks import Blocks, modulate
from unialign_jax.models.details import Details
from unialign_jax.models.mmdit_config import MAX_CONDITIONS, MMDiTConfig
from unialign_jax.models.rotary import rotation_table
from unialign_jax.models.stem import Stem
from unialign_jax.parallel.storage import WHOLE, Storage
from unialign_jax.parallel.tokens import over_context, whole_vocabulary

if TYPE_CHECKING:
    from jaxtyping import Array, Float

# Order of the two modulation vectors of the image head: scale first, unlike in a block.
HEAD_SCALE, HEAD_SHIFT = range(2)


@flax.struct.dataclass
class Branch:
    """The input of one pass.

    Attributes:
      text: [B, L, E] text embeddings.
      timestep: [B] on the scale 0..1000 (1000 sigma).
      latents: [B, H, W, C] target image, or None for the learned null image.
      conditions: 0 to 3 images of the same shape.
    """

    text: Float[Array, "B L E"]
    timestep: Float[Array, " B"]
    latents: Float[Array, "B H W C"] | None = None
    conditions: tuple[Float[Array, "B H W C"], ...] = ()


@dataclasses.dataclass(frozen=True)
class Heads:
    """Which outputs a pass computes; what nobody reads costs nothing."""

    velocity: bool = False
    logits: bool = False
    image_hidden: bool = False
    text_hidden: bool = False
    mid_image: bool = False
    mid_image_tokens: bool = False
    mid_text: bool = False

    @property
    def reads_middle(self) -> bool:
        return self.mid_image or self.mid_image_tokens or self.mid_text

    @property
    def reads_last(self) -> tuple[bool, bool]:
        """Whether the image and the text stream are read after the last block."""
        return self.velocity or self.image_hidden, self.logits or self.text_hidden


ALL_HEADS = Heads(True, True, True, True, True, False, True)


@flax.struct.dataclass
class Output:
    """What a pass returns; None where it was not asked for.

    Attributes:
      velocity: float32 [B, H, W, C], noise minus data; None without an image.
      logits: float32 [B, L, V].
      image_hidden: float32 [B, N, D] target tokens after the image head's norm (without an image:
        the null tokens, not normalised).
      text_hidden: float32 [B, L, D] text tokens after the text head's norm.
      mid_image: float32 [B, A] adapter on the mean of the target tokens after `align_depth` blocks.
      mid_image_tokens: float32 [B, N, A] the same adapter on each target token.
      mid_text: float32 [B, A] adapter on the mean of the text tokens there.
    """

    velocity: Any = None
    logits: Any = None
    image_hidden: Any = None
    text_hidden: Any = None
    mid_image: Any = None
    mid_image_tokens: Any = None
    mid_text: Any = None


class Adapter(nnx.Module):
    """Semantic adapter: linear, SiLU, linear, SiLU (the reference has both SiLUs)."""

    def __init__(self, config: MMDiTConfig, rngs: nnx.Rngs):
        self.up = layers.linear(config.width, config.adapter_hidden, ("embed", "mlp"), rngs=rngs)
        self.down = layers.linear(
            config.adapter_hidden, config.adapter_out, ("mlp_in", None), rngs=rngs
        )

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B A"]:
        return jax.nn.silu(self.down(jax.nn.silu(self.up(x))))


class TimeEmbedding(nnx.Module):
    """Timestep features through linear, SiLU, linear, in float32."""

    def __init__(self, config: MMDiTConfig, rngs: nnx.Rngs):
        init = nnx.initializers.normal(0.02)
        self.up = layers.linear(
            layers.TIME_FEATURES, config.width, (None, None), rngs=rngs, kernel_init=init
        )
        self.down = layers.linear(
            config.width, config.width, ("embed", None), rngs=rngs, kernel_init=init
        )

    def __call__(self, features: Float[Array, "B 256"]) -> Float[Array, "B D"]:
        return self.down(jax.nn.silu(self.up(features)))


class ImageHead(nnx.Module):
    """Modulated norm and projection of image tokens to velocity patches."""

    def __init__(self, config: MMDiTConfig, rngs: nnx.Rngs):
        zeros = nnx.initializers.zeros
        size = config.patch_size**2 * config.channels
        self.modulation = layers.linear(
            config.width,
            (2, config.width),
            ("embed", None, None),
            rngs=rngs,
            kernel_init=zeros,
        )
        self.out = layers.linear(config.width, size, ("embed", None), rngs=rngs, kernel_init=zeros)

    def normalise(self, x: Any, e: Float[Array, "B D"]) -> Float[Array, "B N D"]:
        mod = self.modulation(e)
        return modulate(x, mod[:, HEAD_SHIFT], mod[:, HEAD_SCALE])


class MMDiT(nnx.Module):
    """The network. Parameters are float32; see `MMDiTConfig` for sizes and switches."""

    def __init__(self, config: MMDiTConfig, rngs: nnx.Rngs):
        d = config.width
        self.config = config
        # Orthogonal: no direction of a patch is lost on the way in, so that the velocity, most of
        # which is the noise itself, can be learnt at any width down to the patch's size.
        self.patch = layers.linear(
            config.patch_size**2 * config.channels,
            d,
            (None, None),
            rngs=rngs,
            dtype=config.dtype,
            kernel_init=nnx.initializers.orthogonal(),
        )
        if config.stem_channels:
            self.stem = Stem(config, rngs)
        self.context = layers.linear(
            config.text_width, d, ("text_embed", "embed"), rngs=rngs, dtype=config.dtype
        )
        self.time = TimeEmbedding(config, rngs)
        self.null_image = nnx.Param(
            0.02 * jax.random.normal(rngs.params(), (config.null_image_tokens, d)),
            axes=(None, None),
        )
        if config.text_positions:
            self.text_positions = self._learned(config.text_positions, rngs)
        if config.condition_segments:
            self.segments = self._learned(MAX_CONDITIONS, rngs)
        self.blocks = Blocks(config, rngs)
        self.image_head = ImageHead(config, rngs)
        if config.detail_channels:
            self.details = Details(config, rngs)
        self.text_head = layers.linear(
            d, config.vocab_size, ("embed", "vocab"), rngs=rngs, dtype=config.dtype
        )
        self.align_image = Adapter(config, rngs)
        self.align_text = Adapter(config, rngs)

    def _learned(self, count: int, rngs: nnx.Rngs) -> nnx.Param:
        """Vectors that are added to tokens, [count, D]."""
        std = self.config.positions_std
        values = jnp.zeros((count, self.config.width))
        if std:
            values = std * jax.random.normal(rngs.params(), values.shape)
        return nnx.Param(values, axes=(None, None))

    def __call__(self, branch: Branch, heads: Heads, align_depth: int | None = None) -> Output:
        """Runs one branch; see `forward_branches`."""
        return self.forward_branches([(branch, heads)], align_depth)[0]

    def forward_branches(
        self,
        branches: Sequence[tuple[Branch, Heads]],
        align_depth: int | None = None,
        storage: Storage = WHOLE,
    ) -> list[Output]:
        """Runs several branches, through one scan over the layers unless the config says otherwise.

        Args:
          branches: inputs, each with the outputs wanted of it. Shapes may differ between branches.
          align_depth: number of blocks, from 1, after which the adapters read the streams; needed
            when a `mid_*` output is asked for.
          storage: how a block's weights are made whole; all others are.

        Returns:
          One `Output` per branch.

        Raises:
          ValueError: shapes that do not fit each other or the config.
        """
        if self.config.branches == "apart" and len(branches) > 1:
            alone = [self.forward_branches([one], align_depth, storage) for one in branches]
            return [output for (output,) in alone]
        depth = align_depth if any(heads.reads_middle for _, heads in branches) else None
        if any(heads.reads_middle for _, heads in branches) and (
            align_depth is None or not 1 <= align_depth <= self.config.layers
        ):
            raise ValueError(
                f"align_depth {align_depth} must lie in 1..{self.config.layers} for mid features"
            )
        embedded = [self.embed(branch) for branch, _ in branches]
        times = [jax.nn.silu(self.embed_time(branch.timestep)) for branch, _ in branches]
        modulations = [self.blocks.modulations(e, storage) for e in times]
        rotations = [self._rotations(branch) for branch, _ in branches]
        tokens = tuple(embedded)
        middle = None
        read = [heads.reads_last for _, heads in branches]
        for start, stop in _segments(depth, self.config.layers, whole=all(map(all, read))):
            at_end = read if stop == self.config.layers != depth else None
            tokens = self.blocks.run(tokens, modulations, rotations, start, stop, storage, at_end)
            middle = tokens if stop == depth else middle
        return [
            self._heads(branch, heads, tokens[i], None if middle is None else middle[i], times[i])
            for i, (branch, heads) in enumerate(branches)
        ]

    def embed(self, branch: Branch) -> tuple[Float[Array, "B T D"], Float[Array, "B L D"]]:
        """Returns the image stream (target tokens first, then conditions) and the text stream."""
        text = self.context(branch.text)
        if self.config.text_positions:
            length = text.shape[1]
            if length > self.config.text_positions:
                raise ValueError(
                    f"a text of {length} tokens is longer than text_positions "
                    f"{self.config.text_positions}"
                )
            text = text + self.text_positions[:length].astype(text.dtype)
        if branch.latents is None:
            if branch.conditions:
                raise ValueError("a branch without a target image takes no conditions")
            null = jnp.broadcast_to(self.null_image[...], (text.shape[0], *self.null_image.shape))
            return over_context(null.astype(text.dtype), "null image"), over_context(text, "text")
        if len(branch.conditions) > MAX_CONDITIONS:
            raise ValueError(f"{len(branch.conditions)} conditions; at most {MAX_CONDITIONS}")
        parts = [self.embed_image(branch.latents)]
        for index, condition in enumerate(branch.conditions):
            if condition.shape != branch.latents.shape:
                raise ValueError(
                    f"condition {index} has shape {condition.shape}, the target "
                    f"{branch.latents.shape}; they must be equal"
                )
            part = self.embed_image(condition)
            if self.config.condition_segments:
                part = part + self.segments[index].astype(part.dtype)
            parts.append(part)
        image = jnp.concatenate(parts, axis=1)
        return over_context(image, "image"), over_context(text, "text")

    def embed_image(self, latents: Float[Array, "B H W C"]) -> Float[Array, "B N D"]:
        """Patch embedding plus the cropped sin-cos table."""
        config = self.config
        rows, columns = self._grid(latents)
        tokens = self.patch(layers.patchify(latents, config.patch_size))
        if config.stem_channels:
            tokens = tokens + self.stem(latents)
        by_column, by_row = layers.position_table(
            rows,
            columns,
            config.width,
            table_size=config.position_table_size,
            base_size=config.sample_size // config.patch_size,
        )
        half = (rows, columns, config.width // 2)
        positions = jnp.concatenate(
            [jnp.broadcast_to(by_column[None], half), jnp.broadcast_to(by_row[:, None], half)],
            axis=-1,
        )
        return tokens + positions.reshape(rows * columns, config.width).astype(tokens.dtype)

    def embed_time(self, timestep: Float[Array, " B"]) -> Float[Array, "B D"]:
        features = layers.time_features(
            timestep, round_to_float16=self.config.time_features_float16
        )
        return self.time(features)

    def _rotations(self, branch: Branch) -> tuple[Any, Any] | None:
        """Cosines and sines [T, K/2] of the image stream's tokens; None where nothing turns."""
        config = self.config
        if not config.rotary_fastest or branch.latents is None:
            return None
        table = rotation_table(
            *self._grid(branch.latents),
            config.width // config.heads,
            fastest=config.rotary_fastest,
            slowest=config.rotary_slowest,
        )
        cosines, sines = (jnp.tile(part, (1 + len(branch.conditions), 1)) for part in table)
        return cosines, sines

    def _grid(self, latents: Any) -> tuple[int, int]:
        p = self.config.patch_size
        _, h, w, c = latents.shape
        if h % p or w % p or c != self.config.channels:
            raise ValueError(
                f"latents of shape {latents.shape} (B, H, W, C): H and W must be multiples of the "
                f"patch size {p}, C must be {self.config.channels}"
            )
        return h // p, w // p

    def _velocity(self, made: Float[Array, "B H W C"], branch: Branch) -> Any:
        """The velocity of the flow, from what the image head predicts."""
        if self.config.prediction == "velocity":
            return made
        assert branch.latents is not None
        sigma = jnp.maximum(branch.timestep / flow.TRAINING_LEVELS, 1 / flow.TRAINING_LEVELS)
        return (branch.latents - made) / flow.expand(sigma, made.ndim)

    def _heads(self, branch: Branch, heads: Heads, tokens: Any, middle: Any, e: Any) -> Output:
        has_image = branch.latents is not None
        rows, columns = self._grid(branch.latents) if has_image else (0, 0)
        target = rows * columns if has_image else self.config.null_image_tokens
        image, text = tokens
        out: dict[str, Any] = {}
        if heads.velocity and not has_image:
            raise ValueError("a branch without an image has no velocity")
        if heads.velocity or heads.image_hidden:
            hidden = image[:, :target].astype(jnp.float32)
            hidden = self.image_head.normalise(hidden, e) if has_image else hidden
            out["image_hidden"] = hidden if heads.image_hidden else None
            if heads.velocity:
                patches = self.image_head.out(hidden)
                made = layers.unpatchify(patches, rows, columns, self.config.patch_size)
                if self.config.detail_channels:
                    assert branch.latents is not None
                    made = made + self.details(hidden, branch.latents, branch.conditions)
                out["velocity"] = self._velocity(made, branch)
        if heads.logits or heads.text_hidden:
            hidden = layers.layer_norm(text)
            out["text_hidden"] = hidden if heads.text_hidden else None
            if heads.logits:
                logits = self.text_head(hidden.astype(jnp.dtype(self.config.dtype)))
                out["logits"] = whole_vocabulary(logits.astype(jnp.float32))
        if heads.mid_image or heads.mid_image_tokens:
            target_tokens = middle[0][:, :target].astype(jnp.float32)
            if heads.mid_image:
                out["mid_image"] = self.align_image(jnp.mean(target_tokens, axis=1))
            if heads.mid_image_tokens:
                out["mid_image_tokens"] = self.align_image(target_tokens)
        if heads.mid_text:
            out["mid_text"] = self.align_text(jnp.mean(middle[1].astype(jnp.float32), axis=1))
        return Output(**out)


def _segments(depth: int | None, layers: int, whole: bool) -> list[tuple[int, int]]:
    """Splits the layers where the adapters read, so that no scan stacks its hidden states.

    Unless both streams are read after the last block, that one is run by itself, only as far as
    it is read.
    """
    cuts = {0, layers}
    if depth is not None:
        cuts.add(depth)
    if not whole:
        cuts.add(layers - 1)
    return list(itertools.pairwise(sorted(cuts)))
