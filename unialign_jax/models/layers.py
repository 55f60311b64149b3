"""Small pieces that several networks share: norms, time features, positions, patches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

if TYPE_CHECKING:
    from jaxtyping import Array, Float

TIME_FEATURES = 256


def linear(
    features_in: int,
    features_out: int | tuple[int, ...],
    axes: tuple[str | None, ...],
    *,
    rngs: nnx.Rngs,
    dtype: str = "float32",
    param_dtype: str = "float32",
    use_bias: bool = True,
    kernel_init: nnx.Initializer | None = None,
    bias_init: nnx.Initializer = nnx.initializers.zeros,
) -> nnx.LinearGeneral:
    """A dense layer x W + b whose parameters carry logical axis names for sharding.

    Args:
      features_in: size of the last axis of the input.
      features_out: size, or sizes, of the axes that replace it.
      axes: logical names of the kernel's dimensions, (in, out...).
      rngs: random streams.
      dtype: dtype of the computation.
      param_dtype: dtype in which the parameters are created.
      use_bias: whether there is a b.
      kernel_init: initialiser of W; Xavier uniform over (in, product of out) unless given.
      bias_init: initialiser of b.
    """
    out = features_out if isinstance(features_out, tuple) else (features_out,)
    return nnx.LinearGeneral(
        features_in,
        out,
        use_bias=use_bias,
        dtype=jnp.dtype(dtype),
        param_dtype=jnp.dtype(param_dtype),
        kernel_init=kernel_init or nnx.initializers.xavier_uniform(),
        bias_init=bias_init,
        rngs=rngs,
        kernel_metadata={"axes": axes, "compute": dtype},
        bias_metadata={"axes": axes[1:], "compute": dtype},
    )


def kernel_and_bias(layer: nnx.LinearGeneral, dtype: Any) -> tuple[Any, Any]:
    """A layer's parameters in a compute dtype, for products of other shapes than its own."""
    assert layer.bias is not None
    return layer.kernel[...].astype(dtype), layer.bias[...].astype(dtype)


def layer_norm(x: Float[Array, "*B D"], eps: float = 1e-6) -> Float[Array, "*B D"]:
    """Layer normalisation over the last axis without affine parameters, in float32."""
    x = x.astype(jnp.float32)
    mean = jnp.mean(x, axis=-1, keepdims=True)
    centred = x - mean
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + eps)


def time_features(
    timestep: Float[Array, " B"], *, round_to_float16: bool = False
) -> Float[Array, "B 256"]:
    """Sinusoidal features of a timestep, cosines first.

    [cos(t f_k), sin(t f_k)] with f_k = exp(-ln(10000) k / 128), k = 0..127, in float32.

    Args:
      timestep: on the scale 0..1000, may be fractional.
      round_to_float16: rounds the features to float16, as the published PyTorch code does.
    """
    half = TIME_FEATURES // 2
    exponent = np.float32(-np.log(10000.0)) * np.arange(half, dtype=np.float32) / np.float32(half)
    # exp in float64, then rounded: the last bit of a frequency moves cos and sin by 6e-5.
    frequencies = np.exp(exponent.astype(np.float64)).astype(np.float32)
    angles = timestep.astype(jnp.float32)[:, None] * frequencies
    features = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    if round_to_float16:
        features = features.astype(jnp.float16).astype(jnp.float32)
    return features


def position_table(
    rows: int, columns: int, width: int, *, table_size: int, base_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """The 2-D sin-cos table of Stable Diffusion 3, centre-cropped, as its two factors.

    A table of `table_size` x `table_size` cells is cropped to `rows` x `columns`; cell i has the
    coordinate i * base_size / table_size. The first half of the channels depends on the column
    only, the second on the row only, each [sin(c w), cos(c w)] with w_k = 10000^(-k / (width/4)).
    Keeping the factors apart keeps megabytes of constants out of the compiled program.

    Returns:
      float32 [columns, width/2] and float32 [rows, width/2], computed in float64.

    Raises:
      ValueError: the crop is larger than the table, or width is not a multiple of 4.
    """
    if rows > table_size or columns > table_size:
        raise ValueError(
            f"an image of {rows} x {columns} patches does not fit the position table of "
            f"{table_size} x {table_size}; use a smaller image or raise position_table_size"
        )
    if width % 4:
        raise ValueError(f"width {width} is not a multiple of 4, which 2-D sin-cos tables need")
    omega = 10000.0 ** -(np.arange(width // 4, dtype=np.float64) / (width / 4))

    def encode(count: int) -> np.ndarray:
        start = (table_size - count) // 2
        coordinate = np.arange(start, start + count, dtype=np.float64) * base_size / table_size
        angles = np.outer(coordinate, omega)
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)

    return encode(columns), encode(rows)


def patchify(x: Float[Array, "B H W C"], patch: int) -> Float[Array, "B N PPC"]:
    """Cuts an image into row-major patches, each flattened as (row, column, channel)."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // patch, patch, w // patch, patch, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, (h // patch) * (w // patch), patch * patch * c)


def unpatchify(
    tokens: Float[Array, "B N PPC"], rows: int, columns: int, patch: int
) -> Float[Array, "B H W C"]:
    """The inverse of `patchify` for `rows` x `columns` patches."""
    b, _, size = tokens.shape
    c = size // (patch * patch)
    x = tokens.reshape(b, rows, columns, patch, patch, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, rows * patch, columns * patch, c)
