"""Deliberate mistakes in the text encoder and in the autoencoder."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from tests.parity.mistakes import Patch, around, mistake
from unialign_jax.convert import autoencoder_names, t5_names
from unialign_jax.models import autoencoder, t5


@mistake("t5", "position_bias")
def distances_are_bucketed_in_one_direction(patch: Patch) -> None:
    around(patch, t5, "relative_buckets", lambda f, *args: f(*args) % 16)


@mistake("t5", "position_bias")
def keys_after_the_query_take_the_lower_buckets(patch: Patch) -> None:
    around(patch, t5, "relative_buckets", lambda f, *args: f(*args).T)


@mistake("t5", "out")
def attention_logits_are_scaled(patch: Patch) -> None:
    def scaled(f: Any, subscripts: str, a: Any, *others: Any, **more: Any) -> Any:
        scale = a.shape[-1] ** -0.5 if subscripts == "BQHK,BSHK->BHQS" else 1.0
        return f(subscripts, a * scale, *others, **more)

    around(patch, jnp, "einsum", scaled)


@mistake("t5", "hidden_1")
def gate_and_values_of_the_mlp_are_swapped(patch: Patch) -> None:
    patch.setattr(t5_names, "_MLP", {"gate": "wi_1", "up": "wi_0", "down": "wo"})


@mistake("t5", "hidden_1")
def gelu_is_exact(patch: Patch) -> None:
    around(patch, jax.nn, "gelu", lambda f, x, approximate=True: f(x, approximate=False))


@mistake("t5", "out_masked")
def padding_is_attended_to(patch: Patch) -> None:
    around(patch, t5.T5Block, "_attend", lambda f, self, h, bias, mask: f(self, h, bias, None))


@mistake("t5", "out")
def last_state_is_not_normed(patch: Patch) -> None:
    around(patch, t5.T5Encoder, "__call__", lambda f, self, *args: self.residual_stream(*args))


@mistake("autoencoder", "a_moments")
def downsampling_pads_at_the_top_and_left(patch: Patch) -> None:
    flipped = lambda f, x, width: f(x, tuple(pair[::-1] for pair in width))
    around(patch, jnp, "pad", flipped)


@mistake("autoencoder", "b_moments")
def downsampling_pads_on_all_sides(patch: Patch) -> None:
    def both(f: Any, x: Any, width: Any) -> Any:
        return f(x, tuple((after, after) for _, after in width))[:, :-1, :-1]

    around(patch, jnp, "pad", both)


@mistake("autoencoder", "a_decoded")
def upsampling_is_bilinear(patch: Patch) -> None:
    def smooth(f: Any, x: Any, times: int, axis: int) -> Any:
        shape = tuple(n * times if i == axis else n for i, n in enumerate(x.shape))
        return jax.image.resize(x, shape, "bilinear")

    around(patch, jnp, "repeat", smooth)


@mistake("autoencoder", "a_std")
def deviation_is_the_exponential_of_the_whole_logarithm(patch: Patch) -> None:
    def doubled(f: Any, self: Any, image: Any) -> Any:
        moments = f(self, image)
        return autoencoder.Moments(moments.mean, 2 * moments.logvar)

    around(patch, autoencoder.Autoencoder, "moments", doubled)


@mistake("autoencoder", "a_model_latents")
def latents_are_scaled_before_they_are_shifted(patch: Patch) -> None:
    def encode(f: Any, self: Any, image: Any, noise: Any) -> Any:
        return self.moments(image).sample(noise) * self.config.scale - self.config.shift

    around(patch, autoencoder.Autoencoder, "encode", encode)


@mistake("autoencoder", "a_decoded")
def decoding_does_not_undo_shift_and_scale(patch: Patch) -> None:
    def decode(f: Any, self: Any, latents: Any) -> Any:
        return self.decoder(latents)

    around(patch, autoencoder.Autoencoder, "decode", decode)


@mistake("autoencoder", "a_mean")
def mean_and_log_variance_are_swapped(patch: Patch) -> None:
    def swapped(f: Any, self: Any, image: Any) -> Any:
        moments = f(self, image)
        return autoencoder.Moments(moments.logvar, moments.mean)

    around(patch, autoencoder.Autoencoder, "moments", swapped)


@mistake("autoencoder", "a_moments")
def groups_are_interleaved_over_channels(patch: Patch) -> None:
    def mixed(f: Any, self: Any, x: Any) -> Any:
        order = jnp.arange(x.shape[-1]).reshape(self.groups, -1).T.reshape(-1)
        return f(self, x[..., order])[..., jnp.argsort(order)] if x.shape[-1] > 8 else f(self, x)

    around(patch, autoencoder.GroupNorm, "__call__", mixed)


@mistake("autoencoder", "a_moments")
def attention_has_several_heads(patch: Patch) -> None:
    def heads(f: Any, q: Any, k: Any, v: Any, **more: Any) -> Any:
        split = lambda x: x.reshape(*x.shape[:2], 2, -1)
        return f(split(q), split(k), split(v), **more).reshape(q.shape)

    around(patch, autoencoder, "attention", heads)


@mistake("autoencoder", "a_moments")
def attention_replaces_what_comes_in(patch: Patch) -> None:
    def without(f: Any, self: Any, x: Any) -> Any:
        inside = self.block_1(x)
        block = self.block_2
        self.block_2 = lambda y: y
        try:
            mixed = f(self, x) - inside
        finally:
            self.block_2 = block
        return block(mixed)

    around(patch, autoencoder.Middle, "__call__", without)


@mistake("autoencoder", "a_decoded")
def levels_of_the_decoder_are_read_in_reverse(patch: Patch) -> None:
    def reversed_levels(f: Any, config: Any) -> Any:
        swapped = {"up_blocks.1.resnets.1": "up_blocks.2.resnets.1"}
        swapped |= {value: key for key, value in swapped.items()}
        for entry in f(config):
            names = entry.names
            for old, new in swapped.items():
                if old in names[0] and config.widths[1] == config.widths[2]:
                    names = tuple(name.replace(old, new) for name in names)
                    break
            yield dataclasses.replace(entry, names=names)

    around(patch, autoencoder_names, "table", lambda f, config: list(reversed_levels(f, config)))
