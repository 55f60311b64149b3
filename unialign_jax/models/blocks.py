"""The joint transformer block of the MMDiT, its AdaLN-Zero modulation, and the stack of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unialign_jax.models import layers
from unialign_jax.models.attention import Backend, ContextMethod, joint_attention
from unialign_jax.models.bias import plus_bias
from unialign_jax.models.mmdit_config import REMAT_POLICIES, MMDiTConfig
from unialign_jax.models.rotary import rotate
from unialign_jax.parallel.storage import WHOLE, Storage
from unialign_jax.parallel.tokens import over_context

if TYPE_CHECKING:
    from jaxtyping import Array, Float

# Order of the six modulation vectors of a block.
SHIFT_ATTENTION, SCALE_ATTENTION, GATE_ATTENTION, SHIFT_MLP, SCALE_MLP, GATE_MLP = range(6)
# The image and the text stream.
BOTH = (True, True)
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
        self.out = layers.linear(d, d, ("heads_in", "embed"), rngs=rngs, dtype=dtype)
        self.up = layers.linear(d, f, ("embed", "mlp"), rngs=rngs, dtype=dtype)
        self.down = layers.linear(f, d, ("mlp_in", "embed"), rngs=rngs, dtype=dtype)
        self.dtype = jnp.dtype(dtype)
        self.qk_norm = config.qk_norm
        if config.qk_norm:
            self.query_norm = _head_norm(d // h, rngs)
            self.key_norm = _head_norm(d // h, rngs)

    def queries_keys_values(self, x: Any, mod: Float[Array, "B 6 D"]) -> tuple[Any, Any, Any]:
        """Queries, keys and values, each [B, T, H, K]."""
        x = modulate(x, mod[:, SHIFT_ATTENTION], mod[:, SCALE_ATTENTION]).astype(self.dtype)
        joined, biases = layers.kernel_and_bias(self.qkv, self.dtype)
        kernels = jax.lax.split(joined, (1, 1, 1), axis=1)
        # A product each, straight into heads: a TPU pads 64 channels to the 128 lanes of its
        # vectors, so that slices of one product and reshapes from rows of 1,536 are copies.
        q, k, v = (
            plus_bias(jnp.einsum("BTD,DHK->BTHK", x, jnp.squeeze(kernel, 1)), bias)
            for kernel, bias in zip(kernels, biases, strict=True)
        )
        if self.qk_norm:
            q, k = self.query_norm(q).astype(self.dtype), self.key_norm(k).astype(self.dtype)
        return q, k, v

    def attended(self, heads: Float[Array, "B T H K"]) -> Float[Array, "B T D"]:
        """The output projection; contracts heads and their channels as they lie (see above)."""
        kernel, bias = layers.kernel_and_bias(self.out, self.dtype)
        kernel = kernel.reshape(*heads.shape[2:], -1)
        return jnp.einsum("BTHK,HKD->BTD", heads, kernel) + bias

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
        self.backend: Backend | Literal["auto"] = config.attention
        self.context: ContextMethod = config.context_attention

    def joint_attention(
        self, image: Any, text: Any, mods: tuple[Any, Any], rotations: tuple[Any, Any] | None
    ) -> tuple[Any, Any]:
        """Returns both streams' attention outputs, before the output projections."""
        of_image = self.image.queries_keys_values(image, mods[0])
        if rotations is not None:
            q, k, v = of_image
            of_image = rotate(q, *rotations), rotate(k, *rotations), v
        of_text = self.text.queries_keys_values(text, mods[1])
        return joint_attention(of_image, of_text, backend=self.backend, context=self.context)

    def __call__(
        self,
        image: Any,
        text: Any,
        mods: tuple[Any, Any],
        rotations: tuple[Any, Any] | None = None,
        read: tuple[bool, bool] = BOTH,
    ) -> tuple[Any, Any]:
        """Both streams after the block; one that nobody reads afterwards comes back as it was."""
        heads = self.joint_attention(image, text, mods, rotations)
        if read[0]:
            attended = self.image.attended(heads[0])
            image = over_context(self.image.residuals(image, attended, mods[0]), "image")
        if read[1]:
            attended = self.text.attended(heads[1])
            text = over_context(self.text.residuals(text, attended, mods[1]), "text")
        return image, text


class Modulation(nnx.Module):
    """One stream's AdaLN-Zero projection in one block: six vectors from the time embedding.

    The kernel is kept as (outputs, inputs): rows of it can lie on different devices, each of which
    computes its own outputs, so that a third of the network's weights never travels.
    """

    def __init__(self, config: MMDiTConfig, rngs: nnx.Rngs):
        shape = (6 * config.width, config.width)
        gates = _constant_part((6, config.width), _GATES, config.initial_gates)
        self.kernel = nnx.Param(
            nnx.initializers.zeros(rngs.params(), shape), axes=("modulation", None)
        )
        self.bias = nnx.Param(
            gates(rngs.params(), (6 * config.width,)).reshape(6, config.width), axes=(None, None)
        )


def _modulations(
    stacked: Modulation, e: Float[Array, "B D"], axis: str | None
) -> Float[Array, "layers B 6 D"]:
    """The vectors of all layers. Over `axis`: of its rows for all samples, then exchanged."""
    kernel, bias = stacked.kernel[...], stacked.bias[...]
    if axis is None:
        rows = jnp.einsum("BD,LOD->LBO", e, kernel)
    else:
        everyone = jax.lax.all_gather(e, axis, tiled=True)
        rows = jnp.einsum("BD,LOD->LBO", everyone, kernel)
        rows = jax.lax.all_to_all(rows, axis, split_axis=1, concat_axis=2, tiled=True)
    return rows.reshape(*rows.shape[:2], *bias.shape[1:]) + bias[:, None]


class Blocks(nnx.Module):
    """All blocks, stacked on a leading layer axis; the modulation is computed outside the scan."""

    def __init__(self, config: MMDiTConfig, rngs: nnx.Rngs):
        @nnx.split_rngs(splits=config.layers)
        @nnx.vmap(in_axes=0, out_axes=0)
        def stack(rngs: nnx.Rngs) -> tuple[nnx.Dict, Block]:
            projections = nnx.Dict(image=Modulation(config, rngs), text=Modulation(config, rngs))
            return projections, Block(config, rngs)

        self.modulation, self.layers = stack(rngs)
        self.remat = config.remat
        self.unroll = config.unroll

    def modulations(self, e: Float[Array, "B D"], storage: Storage = WHOLE) -> tuple[Any, Any]:
        """Returns ([layers, B, 6, D], [layers, B, 6, D]) for the image and the text stream."""
        image, text = self.modulation["image"], self.modulation["text"]
        return _modulations(image, e, storage.axis), _modulations(text, e, storage.axis)

    def layer(self, index: int) -> Block:
        """Returns one block, unstacked."""
        graphdef, state = nnx.split(self.layers)
        return nnx.merge(graphdef, jax.tree.map(lambda x: x[index], nnx.to_pure_dict(state)))

    def run(
        self,
        tokens: Any,
        modulations: Any,
        rotations: Any,
        start: int,
        stop: int,
        storage: Storage = WHOLE,
        read: Sequence[tuple[bool, bool]] | None = None,
    ) -> Any:
        """Runs blocks start..stop-1 over every branch in one scan.

        Args:
          tokens: a tuple with (image stream, text stream) per branch.
          modulations: per branch, what `modulations` returned for its time embedding.
          rotations: per branch, the angles of its image stream (`rotary.rotate`), or None.
          start: first block.
          stop: one past the last block.
          storage: how a block's weights are made whole, once for all branches.
          read: per branch, which streams are read after the last of these blocks. One that is not
            is left out there: only of a single block.
        """
        reads = read or [BOTH] * len(tokens)
        assert stop - start == 1 or all(one == BOTH for one in reads)
        graphdef, state = nnx.split(self.layers)
        stacked = jax.tree.map(lambda x: x[start:stop], (nnx.to_pure_dict(state), modulations))

        def body(carry: Any, layer: Any) -> tuple[Any, None]:
            params, mods = layer
            block: Any = nnx.merge(graphdef, storage.layer(params))
            branches = zip(carry, mods, rotations, reads, strict=True)
            return tuple(
                block(image, text, mod, angles, streams)
                for (image, text), mod, angles, streams in branches
            ), None

        if self.remat != "none" or storage.axis:
            body = jax.checkpoint(body, policy=REMAT_POLICIES[self.remat], prevent_cse=False)
        return jax.lax.scan(body, tokens, stacked, unroll=self.unroll)[0]
