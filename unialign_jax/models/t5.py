"""T5 v1.1 encoder: Raffel et al. 2020 (arXiv 1910.10683) with the gated GELU of arXiv 2002.05202.

What sets it apart from an ordinary transformer encoder: RMS norms before each sub-layer, no bias
anywhere, no absolute positions but one learned bias per head and bucket of distance that all layers
share, attention logits that are not scaled by 1/sqrt(kv_dim), and a query width (heads x kv_dim)
free of the model's width.

The layers are stacked on a leading axis and scanned, so that compile time does not grow with depth.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unialign_jax.models.checks import check_dtype, check_sizes
from unialign_jax.parallel.storage import WHOLE, Storage

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

_NORM_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Sizes of a T5 v1.1 encoder; the defaults are T5-XXL's.

    Attributes:
      vocab_size: rows of the token table (T5 pads its 32100 tokens to 32128).
      width: channels of the residual stream.
      kv_dim: channels of one head's queries, keys and values.
      heads: attention heads; heads * kv_dim need not equal width.
      layers: number of blocks.
      mlp_width: channels inside the gated MLP.
      relative_buckets: rows of the distance table, half of them for keys after the query.
      relative_max_distance: distance from which on all share the last bucket.
      dtype: compute and output dtype. Norms and softmax are float32 whatever it is.
      param_dtype: dtype in which the parameters are created.
    """

    vocab_size: int = 32128
    width: int = 4096
    kv_dim: int = 64
    heads: int = 64
    layers: int = 24
    mlp_width: int = 10240
    relative_buckets: int = 32
    relative_max_distance: int = 128
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self) -> None:
        check_dtype("dtype", self.dtype)
        check_dtype("param_dtype", self.param_dtype)
        check_sizes(self, "vocab_size", "width", "kv_dim", "heads", "layers", "mlp_width")
        if self.relative_buckets < 4 or self.relative_max_distance <= self.relative_buckets // 4:
            raise ValueError(
                f"relative_buckets is {self.relative_buckets} (at least 4) and "
                f"relative_max_distance {self.relative_max_distance} (above a quarter of them)"
            )


def relative_buckets(length: int, buckets: int, max_distance: int) -> np.ndarray:
    """Bucket of the distance between every query and key, for attention both ways.

    The upper half of the buckets is for keys after the query. In each half the first half is exact,
    one distance each, the rest logarithmic up to `max_distance`. Computed in NumPy at trace time:
    an accelerator's logarithm may fall on the other side of an integer.

    Args:
      length: number of tokens L.
      buckets: number of buckets.
      max_distance: distance from which on all share the last bucket.

    Returns:
      int32 [L, L] indexed [query, key], in 0..buckets-1.
    """
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    half = buckets // 2
    exact = half // 2
    magnitude = np.abs(distance)
    # float32 as in the original: the float64 quotient is a hair larger where it is nearly whole.
    ratio = np.log(np.maximum(magnitude, 1).astype(np.float32) / np.float32(exact))
    scaled = ratio / np.float32(math.log(max_distance / exact)) * np.float32(half - exact)
    # Truncated as an int before `exact` is added; it is negative only where it is not used.
    logarithmic = np.minimum(exact + scaled.astype(np.int32), half - 1)
    within = np.where(magnitude < exact, magnitude, logarithmic)
    return (within + np.where(distance > 0, half, 0)).astype(np.int32)


def _linear(config: T5Config, shape, axes, std: float, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(
        *shape,
        use_bias=False,
        dtype=jnp.dtype(config.dtype),
        param_dtype=jnp.dtype(config.param_dtype),
        kernel_init=nnx.initializers.normal(std),
        kernel_metadata={"axes": axes, "compute": config.dtype},
        rngs=rngs,
    )


def _norm(config: T5Config, rngs: nnx.Rngs) -> nnx.RMSNorm:
    return nnx.RMSNorm(
        config.width,
        epsilon=_NORM_EPSILON,
        dtype=jnp.float32,
        param_dtype=jnp.dtype(config.param_dtype),
        scale_metadata={"axes": (None,)},
        rngs=rngs,
    )


class T5Block(nnx.Module):
    """Self-attention and gated MLP, each behind an RMS norm and added to the residual stream.

    The initial deviations are Mesh TensorFlow's: the queries carry the 1/sqrt(kv_dim) that the
    attention logits lack, all else keeps unit variance.
    """

    def __init__(self, config: T5Config, rngs: nnx.Rngs):
        inner = config.heads * config.kv_dim
        into, out_of = ("embed", "heads"), ("heads_in", "embed")
        linear = functools.partial(_linear, config, rngs=rngs)
        self.config = config
        self.attention_norm = _norm(config, rngs)
        self.query = linear((config.width, inner), into, (config.width * config.kv_dim) ** -0.5)
        self.key = linear((config.width, inner), into, config.width**-0.5)
        self.value = linear((config.width, inner), into, config.width**-0.5)
        self.out = linear((inner, config.width), out_of, inner**-0.5)
        self.mlp_norm = _norm(config, rngs)
        hidden = (config.width, config.mlp_width)
        self.gate = linear(hidden, ("embed", "mlp"), config.width**-0.5)
        self.up = linear(hidden, ("embed", "mlp"), config.width**-0.5)
        self.down = linear(hidden[::-1], ("mlp_in", "embed"), config.mlp_width**-0.5)

    def __call__(
        self,
        x_BLE: Float[Array, "B L E"],
        bias_HLL: Float[Array, "H L L"],
        mask: Bool[Array, "B L"] | None,
    ) -> Float[Array, "B L E"]:
        """One layer; `bias_HLL` is float32 [heads, query, key], `mask` True for keys to look at."""
        x_BLE = x_BLE + self._attend(self.attention_norm(x_BLE), bias_HLL, mask)
        h_BLE = self.mlp_norm(x_BLE)
        gated_BLF = jax.nn.gelu(self.gate(h_BLE), approximate=True) * self.up(h_BLE)
        return x_BLE + self.down(gated_BLF)

    def _attend(self, h_BLE, bias_HLL, mask):
        batch, length, _ = h_BLE.shape
        heads = (batch, length, self.config.heads, self.config.kv_dim)
        q_BLHK, k_BLHK, v_BLHK = (
            project(h_BLE).reshape(heads) for project in (self.query, self.key, self.value)
        )
        logits = jnp.einsum("BQHK,BSHK->BHQS", q_BLHK, k_BLHK, preferred_element_type=jnp.float32)
        logits = logits + bias_HLL
        if mask is not None:
            logits = jnp.where(mask[:, None, None, :], logits, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(logits, axis=-1).astype(v_BLHK.dtype)
        mixed_BLHK = jnp.einsum("BHQS,BSHK->BQHK", weights, v_BLHK)
        return self.out(mixed_BLHK.reshape(batch, length, -1))


class T5Encoder(nnx.Module):
    """Token ids to text embeddings.

    Args:
      config: sizes and dtypes.
      rngs: source of the initial parameters (stream "params").
    """

    def __init__(self, config: T5Config, rngs: nnx.Rngs):
        self.config = config
        param_dtype = jnp.dtype(config.param_dtype)
        self.token_embedding = nnx.Embed(
            config.vocab_size,
            config.width,
            dtype=jnp.dtype(config.dtype),
            param_dtype=param_dtype,
            embedding_init=nnx.initializers.normal(1.0),
            embedding_metadata={"axes": ("vocab", "embed"), "compute": config.dtype},
            rngs=rngs,
        )
        self.relative_bias = nnx.Embed(
            config.relative_buckets,
            config.heads,
            dtype=jnp.float32,
            param_dtype=param_dtype,
            embedding_init=nnx.initializers.normal(config.width**-0.5),
            embedding_metadata={"axes": (None, "heads")},
            rngs=rngs,
        )

        @nnx.split_rngs(splits=config.layers)
        @nnx.vmap(in_axes=0, out_axes=0)
        def stacked(rngs: nnx.Rngs) -> T5Block:
            return T5Block(config, rngs)

        self.blocks = stacked(rngs)
        self.final_norm = _norm(config, rngs)

    def position_bias(self, length: int) -> Float[Array, "H L L"]:
        """float32 [heads, query, key] that every layer adds to its attention logits."""
        buckets = relative_buckets(
            length, self.config.relative_buckets, self.config.relative_max_distance
        )
        return jnp.einsum("QSH->HQS", self.relative_bias(jnp.asarray(buckets)))

    def residual_stream(
        self,
        ids: Int[Array, "B L"],
        mask: Bool[Array, "B L"] | None = None,
        storage: Storage = WHOLE,
    ) -> Float[Array, "B L E"]:
        """Hidden state behind the last block, before the final norm; arguments as `__call__`."""
        bias_HLL = self.position_bias(ids.shape[1])
        structure, layers = nnx.split(self.blocks)

        def layer(x_BLE, state):
            return nnx.merge(structure, storage.layer(state))(x_BLE, bias_HLL, mask), None

        x_BLE, _ = jax.lax.scan(layer, self.token_embedding(ids), nnx.to_pure_dict(layers))
        return x_BLE

    def __call__(
        self,
        ids: Int[Array, "B L"],
        mask: Bool[Array, "B L"] | None = None,
        storage: Storage = WHOLE,
    ) -> Float[Array, "B L E"]:
        """Encodes a batch of texts.

        Args:
          ids: int32 [B, L], each in 0..vocab_size-1.
          mask: True for the tokens that may be attended to. None attends to all, pads included,
            which is how UniAlignment uses its text encoder.
          storage: how a layer's weights are made whole.

        Returns:
          [B, L, width] in `config.dtype`.
        """
        return self.final_norm(self.residual_stream(ids, mask, storage)).astype(self.config.dtype)
