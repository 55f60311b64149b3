"""The joint transformer block of the MMDiT, its AdaLN-Zero modulation, and the stack of blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unialign_jax.models import layers
from unialign_jax.models.attention import attention
from unialign_jax.models.mmdit_config import REMAT_POLICIES, MMDiTConfig
from unialign_jax.models.rotary import rotate

if TYPE_CHECKING:
    from jaxtyping import Array, Float

# Order of the six modulation vectors of a block.
SHIFT_ATTENTION, SCALE_ATTENTION, GATE_ATTENTION, SHIFT_MLP, SCALE_MLP, GATE_MLP = range(6)
# Where initial biases differ from 0: queries and keys of head 0, and both gates.
_FIRST_HEAD = np.s_[:2, 0]
_GATES = np.s_[GATE_ATTENTION :: GATE_MLP - GATE_ATTENTION]


def modulate(
    x: Float[Array, "B N D"], shift: Float[Array, "B D"], scale: Float[Array, "B D"]
) -> Float[Array, "B N D"]:
    """LN(x) (1 + scale) + shift in float32: adaptive layer norm (arXiv 2212.09748)."""
    return layers.layer_norm(x) * (1 + scale[:, None]) + shift[:, None]


class Stream(nnx.Module):
    """One stream's weights in one block: q, k, v, attention output, MLP."""

    def __init__(self, config: MMDiTConfig, first_head_bias: float, rngs: nnx.Rngs):
        d, h, f = config.width, config.heads, 4 * config.width
        dtype = config.dtype
        qkv_init = nnx.initializers.variance_scaling(
            1.0, "fan_in", "normal", in_axis=0, out_axis=-1
        )
        self.qkv = layers.linear(
            d,
            (3, h, d // h),
            ("embed", None, "heads", "kv"),
            rngs=rngs,
            dtype=dtype,
            kernel_init=qkv_init,
            bias_init=_constant_part((3, h, d // h), _FIRST_HEAD, first_head_bias),
        )
        self.out = layers.linear(d, d, ("heads", "embed"), rngs=rngs, dtype=dtype)
        self.up = layers.linear(d, f, ("embed", "mlp"), rngs=rngs, dtype=dtype)
        self.down = layers.linear(f, d, ("mlp", "embed"), rngs=rngs, dtype=dtype)
        self.dtype = jnp.dtype(dtype)
        self.qk_norm = config.qk_norm
        if config.qk_norm:
            self.query_norm = _head_norm(d // h, rngs)
            self.key_norm = _head_norm(d // h, rngs)

    def queries_keys_values(self, x: Any, mod: Float[Array, "B 6 D"]) -> tuple[Any, Any, Any]:
        """Queries, keys and values, each [B, T, H, K]."""
        x = modulate(x, mod[:, SHIFT_ATTENTION], mod[:, SCALE_ATTENTION])
        qkv = self.qkv(x.astype(self.dtype))
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        if self.qk_norm:
            q, k = self.query_norm(q).astype(self.dtype), self.key_norm(k).astype(self.dtype)
        return q, k, v

    def attended(self, heads: Float[Array, "B T H K"]) -> Float[Array, "B T D"]:
        return self.out(heads.reshape(*heads.shape[:2], -1))

    def residuals(self, x: Any, attended: Any, mod: Float[Array, "B 6 D"]) -> Float[Array, "B T D"]:
        x = x + self._gated(attended, mod[:, GATE_ATTENTION])
        inner = modulate(x, mod[:, SHIFT_MLP], mod[:, SCALE_MLP]).astype(self.dtype)
        inner = self.down(jax.nn.gelu(self.up(inner), approximate=True))
        return x + self._gated(inner, mod[:, GATE_MLP])

    def _gated(self, x: Any, gate: Float[Array, "B D"]) -> Any:
        return (gate[:, None] * x.astype(jnp.float32)).astype(self.dtype)


def _constant_part(shape: tuple[int, ...], part: Any, value: float) -> nnx.Initializer:
    """Zeros [shape] with `value` at the index `part`; Flax asks for a bias as one flat row."""

    def init(key: Any, flat: Any, *rest: Any, **more: Any) -> Any:
        zeros = nnx.initializers.zeros(key, shape, *rest, **more)
        return zeros.at[part].set(value).reshape(flat)

    return init


def _head_norm(size: int, rngs: nnx.Rngs) -> nnx.RMSNorm:
    """The root-mean-square norm over a head's channels of Stable Diffusion 3.5, in float32."""
    return nnx.RMSNorm(
        size, epsilon=1e-6, dtype=jnp.float32, scale_metadata={"axes": (None,)}, rngs=rngs
    )


class Block(nnx.Module):
    """A joint block: one softmax over image and text tokens, separate weights for the rest."""

    def __init__(self, config: MMDiTConfig, rngs: nnx.Rngs):
        self.image = Stream(config, config.rotary_bias, rngs)
        self.text = Stream(config, 0.0, rngs)

    def joint_attention(
        self, image: Any, text: Any, mods: tuple[Any, Any], rotations: tuple[Any, Any] | None
    ) -> tuple[Any, Any]:
        """Returns both streams' attention outputs, after the output projections."""
        of_image = self.image.queries_keys_values(image, mods[0])
        if rotations is not None:
            q, k, v = of_image
            of_image = rotate(q, *rotations), rotate(k, *rotations), v
        of_text = self.text.queries_keys_values(text, mods[1])
        joined = [jnp.concatenate(pair, axis=1) for pair in zip(of_image, of_text, strict=True)]
        heads = attention(*joined)
        count = image.shape[1]
        return self.image.attended(heads[:, :count]), self.text.attended(heads[:, count:])

    def __call__(
        self,
        image: Any,
        text: Any,
        mods: tuple[Any, Any],
        rotations: tuple[Any, Any] | None = None,
    ) -> tuple[Any, Any]:
        attended = self.joint_attention(image, text, mods, rotations)
        return (
            self.image.residuals(image, attended[0], mods[0]),
            self.text.residuals(text, attended[1], mods[1]),
        )


class Modulation(nnx.Module):
    """One block's AdaLN-Zero projections: six vectors per stream from the time embedding."""

    def __init__(self, config: MMDiTConfig, rngs: nnx.Rngs):
        gates = _constant_part((6, config.width), _GATES, config.initial_gates)

        def projection() -> nnx.LinearGeneral:
            return layers.linear(
                config.width,
                (6, config.width),
                ("embed", None, "modulation"),
                rngs=rngs,
                kernel_init=nnx.initializers.zeros,
                bias_init=gates,
            )

        self.image = projection()
        self.text = projection()

    def __call__(self, e: Float[Array, "B D"]) -> tuple[Any, Any]:
        return self.image(e), self.text(e)


class Blocks(nnx.Module):
    """All blocks, stacked on a leading layer axis; the modulation is computed outside the scan."""

    def __init__(self, config: MMDiTConfig, rngs: nnx.Rngs):
        @nnx.split_rngs(splits=config.layers)
        @nnx.vmap(in_axes=0, out_axes=0)
        def stack(rngs: nnx.Rngs) -> tuple[Modulation, Block]:
            return Modulation(config, rngs), Block(config, rngs)

        self.modulation, self.layers = stack(rngs)
        self.remat = config.remat
        self.unroll = config.unroll

    def modulations(self, e: Float[Array, "B D"]) -> tuple[Any, Any]:
        """Returns ([layers, B, 6, D], [layers, B, 6, D]) for the image and the text stream."""
        graphdef, state = nnx.split(self.modulation)
        return jax.vmap(lambda s: nnx.merge(graphdef, s)(e))(state)

    def layer(self, index: int) -> Block:
        """Returns one block, unstacked."""
        graphdef, state = nnx.split(self.layers)
        return nnx.merge(graphdef, jax.tree.map(lambda x: x[index], nnx.to_pure_dict(state)))

    def run(self, tokens: Any, modulations: Any, rotations: Any, start: int, stop: int) -> Any:
        """Runs blocks start..stop-1 over every branch in one scan.

        Args:
          tokens: a tuple with (image stream, text stream) per branch.
          modulations: per branch, what `modulations` returned for its time embedding.
          rotations: per branch, the angles of its image stream (`rotary.rotate`), or None.
          start: first block.
          stop: one past the last block.
        """
        graphdef, state = nnx.split(self.layers)
        stacked = jax.tree.map(lambda x: x[start:stop], (nnx.to_pure_dict(state), modulations))

        def body(carry: Any, layer: Any) -> tuple[Any, None]:
            params, mods = layer
            block: Any = nnx.merge(graphdef, params)
            branches = zip(carry, mods, rotations, strict=True)
            return tuple(
                block(image, text, mod, angles) for (image, text), mod, angles in branches
            ), None

        if self.remat != "none":
            body = jax.checkpoint(body, policy=REMAT_POLICIES[self.remat], prevent_cse=False)
        return jax.lax.scan(body, tokens, stacked, unroll=self.unroll)[0]
