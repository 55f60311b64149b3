"""SigLIP: Zhai et al. 2023 (arXiv 2303.15343), an image and a text tower into one space.

Both towers are pre-norm transformer encoders with learned absolute positions, biases everywhere,
tanh GELU and attention in both directions without a mask. They differ in how they pool: the image
tower lets a learned probe attend to all patches (the MAP head of arXiv 2106.04560), the text tower
takes the last token, a pad or not, through a linear layer.

The blocks of a tower are stacked on a leading axis and scanned, so that compile time does not grow
with depth.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from unialign_jax.models import functional
from unialign_jax.models.attention import attention
from unialign_jax.models.layers import linear
from unialign_jax.models.teachers.siglip_config import SigLIPConfig, TowerConfig

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

CHANNELS = 3
NORM_EPSILON = 1e-6
# The paper's start: few of the pairs in a batch belong together.
FIRST_LOGIT_SCALE, FIRST_LOGIT_BIAS = math.log(10.0), -10.0


class Encoding(NamedTuple):
    """What a tower makes of its input.

    Attributes:
      pooled: [B, F], one vector per input, not normalised.
      hidden: [B, N, width], one vector per patch (row-major) or token, behind the last norm.
    """

    pooled: Float[Array, "B F"]
    hidden: Float[Array, "B N E"]


def normalise(features: Float[Array, "*B F"]) -> Float[Array, "*B F"]:
    """Scales vectors to length 1, in float32."""
    features = features.astype(jnp.float32)
    return features / jnp.linalg.norm(features, axis=-1, keepdims=True)


def _linear(config: SigLIPConfig, shape, axes, rngs: nnx.Rngs) -> nnx.LinearGeneral:
    return linear(
        shape[0], shape[1], axes, rngs=rngs, dtype=config.dtype, param_dtype=config.param_dtype
    )


def _norm(config: SigLIPConfig, width: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(
        width,
        epsilon=NORM_EPSILON,
        dtype=jnp.float32,
        param_dtype=jnp.dtype(config.param_dtype),
        # E[x^2] - E[x]^2 would lose digits where the mean is large.
        use_fast_variance=False,
        scale_metadata={"axes": (None,)},
        bias_metadata={"axes": (None,)},
        rngs=rngs,
    )


def _table(config: SigLIPConfig, rows: int, width: int, axes, rngs: nnx.Rngs) -> nnx.Embed:
    return nnx.Embed(
        rows,
        width,
        dtype=jnp.dtype(config.dtype),
        param_dtype=jnp.dtype(config.param_dtype),
        embedding_init=nnx.initializers.normal(width**-0.5),
        embedding_metadata={"axes": axes},
        rngs=rngs,
    )


def _attend(q_BQD: Array, k_BSD: Array, v_BSD: Array, heads: int) -> Array:
    """Attention over all keys of channels that are split into heads; [B, Q, D]."""
    # XLA's, on every machine: the fused kernel wants head widths that are multiples of 8.
    q_BQHK, k_BSHK, v_BSHK = (x.reshape(*x.shape[:2], heads, -1) for x in (q_BQD, k_BSD, v_BSD))
    return attention(q_BQHK, k_BSHK, v_BSHK, backend="xla").reshape(q_BQD.shape)


class MLP(nnx.Module):
    """Two dense layers with a tanh GELU between."""

    def __init__(self, config: SigLIPConfig, tower: TowerConfig, rngs: nnx.Rngs):
        self.up = _linear(config, (tower.width, tower.mlp_width), ("embed", "mlp"), rngs)
        self.down = _linear(config, (tower.mlp_width, tower.width), ("mlp", "embed"), rngs)

    def __call__(self, x: Float[Array, "*B E"]) -> Float[Array, "*B E"]:
        return self.down(jax.nn.gelu(self.up(x), approximate=True))


class Block(nnx.Module):
    """Self-attention and MLP, each behind a layer norm and added to the residual stream."""

    def __init__(self, config: SigLIPConfig, tower: TowerConfig, rngs: nnx.Rngs):
        square = (tower.width, tower.width)
        self.heads = tower.heads
        self.attention_norm = _norm(config, tower.width, rngs)
        self.query = _linear(config, square, ("embed", "heads"), rngs)
        self.key = _linear(config, square, ("embed", "heads"), rngs)
        self.value = _linear(config, square, ("embed", "heads"), rngs)
        self.out = _linear(config, square, ("heads", "embed"), rngs)
        self.mlp_norm = _norm(config, tower.width, rngs)
        self.mlp = MLP(config, tower, rngs)

    def __call__(self, x_BNE: Float[Array, "B N E"]) -> Float[Array, "B N E"]:
        h_BNE = self.attention_norm(x_BNE)
        q, k, v = self.query(h_BNE), self.key(h_BNE), self.value(h_BNE)
        x_BNE = x_BNE + self.out(_attend(q, k, v, self.heads))
        return x_BNE + self.mlp(self.mlp_norm(x_BNE))


class PoolingHead(nnx.Module):
    """A learned query that attends to all patches, then a residual MLP behind a norm.

    Queries, keys and values share one array [in, 3, out], as they do in the published weights: the
    probe needs the first matrix only, the patches the other two.
    """

    def __init__(self, config: SigLIPConfig, rngs: nnx.Rngs):
        vision, width = config.vision, config.vision.width
        param_dtype = jnp.dtype(config.param_dtype)
        self.heads = vision.heads
        self.dtype = jnp.dtype(config.dtype)
        probe = nnx.initializers.normal(width**-0.5)
        self.probe = nnx.Param(probe(rngs.params(), (width,), param_dtype), axes=("embed",))
        kernel = nnx.initializers.xavier_uniform(in_axis=0, out_axis=2, batch_axis=1)
        self.qkv_kernel = nnx.Param(
            kernel(rngs.params(), (width, 3, width), param_dtype), axes=("embed", None, "heads")
        )
        self.qkv_bias = nnx.Param(jnp.zeros((3, width), param_dtype), axes=(None, "heads"))
        self.out = _linear(config, (width, width), ("heads", "embed"), rngs)
        self.norm = _norm(config, width, rngs)
        self.mlp = MLP(config, vision, rngs)

    def __call__(self, x_BNE: Float[Array, "B N E"]) -> Float[Array, "B E"]:
        x_BNE, probe, kernel, bias = (
            x.astype(self.dtype)
            for x in (x_BNE, self.probe[...], self.qkv_kernel[...], self.qkv_bias[...])
        )
        query = jnp.einsum("E,ED->D", probe, kernel[:, 0]) + bias[0]
        q_B1D = jnp.broadcast_to(query, (x_BNE.shape[0], 1, query.shape[0]))
        k_BND, v_BND = (jnp.einsum("BNE,ED->BND", x_BNE, kernel[:, i]) + bias[i] for i in (1, 2))
        x_BE = self.out(_attend(q_B1D, k_BND, v_BND, self.heads))[:, 0]
        return x_BE + self.mlp(self.norm(x_BE))


def _stack(config: SigLIPConfig, tower: TowerConfig, rngs: nnx.Rngs) -> Block:
    """The blocks of a tower as one, with a leading axis of layers."""

    @nnx.split_rngs(splits=tower.layers)
    @nnx.vmap(in_axes=0, out_axes=0)
    def stacked(rngs: nnx.Rngs) -> Block:
        return Block(config, tower, rngs)

    return stacked(rngs)


def _run(blocks: Block, x_BNE: Array) -> Array:
    structure, layers = nnx.split(blocks)

    def layer(x_BNE, state):
        return nnx.merge(structure, state)(x_BNE), None

    return jax.lax.scan(layer, x_BNE, layers)[0]


class ImageTower(nnx.Module):
    """Patches with learned positions through the blocks, pooled by attention."""

    def __init__(self, config: SigLIPConfig, rngs: nnx.Rngs):
        vision = config.vision
        self.config = config
        self.patch_embed = nnx.Conv(
            CHANNELS,
            vision.width,
            kernel_size=(vision.patch_size, vision.patch_size),
            strides=vision.patch_size,
            padding="VALID",
            dtype=jnp.dtype(config.dtype),
            param_dtype=jnp.dtype(config.param_dtype),
            kernel_metadata={"axes": (None, None, None, "embed")},
            bias_metadata={"axes": ("embed",)},
            rngs=rngs,
        )
        self.positions = _table(config, vision.rows**2, vision.width, (None, "embed"), rngs)
        self.blocks = _stack(config, vision, rngs)
        self.final_norm = _norm(config, vision.width, rngs)
        self.pool = PoolingHead(config, rngs)

    def __call__(self, images: Float[Array, "B S S 3"]) -> Encoding:
        size = self.config.vision.image_size
        if images.ndim != 4 or images.shape[1:] != (size, size, CHANNELS):
            raise ValueError(
                f"images are {images.shape}, this encoder takes (batch, {size}, {size}, "
                f"{CHANNELS}); scale them with unialign_jax.models.teachers.siglip_images"
            )
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(
                f"images are {images.dtype}, this encoder takes floats in [-1, 1]; convert them "
                "with unialign_jax.models.teachers.siglip_images"
            )
        patches = self.patch_embed(images)
        x_BNE = patches.reshape(patches.shape[0], -1, patches.shape[-1])
        x_BNE = _run(self.blocks, x_BNE + self.positions(jnp.arange(x_BNE.shape[1])))
        x_BNE = self.final_norm(x_BNE).astype(self.config.dtype)
        return Encoding(self.pool(x_BNE), x_BNE)


class TextTower(nnx.Module):
    """Tokens with learned positions through the blocks; the last one, projected, is pooled."""

    def __init__(self, config: SigLIPConfig, rngs: nnx.Rngs):
        text = config.text
        self.config = config
        self.tokens = _table(config, text.vocab_size, text.width, ("vocab", "embed"), rngs)
        self.positions = _table(config, text.positions, text.width, (None, "embed"), rngs)
        self.blocks = _stack(config, text, rngs)
        self.final_norm = _norm(config, text.width, rngs)
        self.head = _linear(config, (text.width, config.features), ("embed", None), rngs)

    def __call__(self, ids: Int[Array, "B L"]) -> Encoding:
        longest = self.config.text.positions
        if ids.ndim != 2 or not 1 <= ids.shape[1] <= longest:
            raise ValueError(
                f"ids are {ids.shape}, this encoder takes (batch, length) with lengths of 1 to "
                f"{longest}; cut the texts"
            )
        x_BLE = self.tokens(ids) + self.positions(jnp.arange(ids.shape[1]))
        x_BLE = self.final_norm(_run(self.blocks, x_BLE)).astype(self.config.dtype)
        return Encoding(self.head(x_BLE[:, -1]), x_BLE)


class SigLIP(nnx.Module):
    """Images and texts to features of one width, and the logits of their belonging together.

    Args:
      config: sizes and dtypes.
      rngs: source of the initial parameters (stream "params").
    """

    def __init__(self, config: SigLIPConfig, rngs: nnx.Rngs):
        self.config = config
        param_dtype = jnp.dtype(config.param_dtype)
        self.image = ImageTower(config, rngs)
        self.text = TextTower(config, rngs)
        self.logit_scale = nnx.Param(jnp.full((1,), FIRST_LOGIT_SCALE, param_dtype), axes=(None,))
        self.logit_bias = nnx.Param(jnp.full((1,), FIRST_LOGIT_BIAS, param_dtype), axes=(None,))

    def encode_image(self, images: Float[Array, "B S S 3"]) -> Encoding:
        """Encodes a batch of images.

        Args:
          images: floats in [-1, 1], RGB, S = `config.vision.image_size`.

        Returns:
          `pooled` [B, F] and `hidden` [B, rows * rows, vision width] in `config.dtype`.

        Raises:
          ValueError: another shape, or integers.
        """
        return self.image(images)

    def encode_text(self, ids: Int[Array, "B L"]) -> Encoding:
        """Encodes a batch of texts.

        There is no mask: every token is attended to and the last one is pooled, so pads count.
        SigLIP was trained on texts padded to all `config.text.positions` tokens.

        Args:
          ids: int32 [B, L], each in 0..vocab_size-1, L from 1 to `config.text.positions`.

        Returns:
          `pooled` [B, F] and `hidden` [B, L, text width] in `config.dtype`.

        Raises:
          ValueError: another number of axes, no tokens, or more than there are positions for.
        """
        return self.text(ids)

    def logits(
        self, image_features: Float[Array, "I F"], text_features: Float[Array, "T F"]
    ) -> Float[Array, "I T"]:
        """Logit that an image and a text belong together: exp(scale) cos(image, text) + bias.

        A probability is its sigmoid (arXiv 2303.15343, section 3.2).

        Args:
          image_features: `pooled` of images.
          text_features: `pooled` of texts.

        Returns:
          float32 [images, texts].
        """
        images, texts = normalise(image_features), normalise(text_features)
        # An accelerator's own choice of precision would show: the scale is in the hundreds.
        cosine = jnp.einsum("IF,TF->IT", images, texts, precision=jax.lax.Precision.HIGHEST)
        scale, bias = (x[...].astype(jnp.float32) for x in (self.logit_scale, self.logit_bias))
        return cosine * jnp.exp(scale) + bias


def build(config: SigLIPConfig) -> functional.Functional:
    """The functional form of the encoder; allocates nothing."""
    return functional.build(lambda rngs: SigLIP(config, rngs))
