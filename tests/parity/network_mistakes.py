"""Deliberate mistakes in the network."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity.mistakes import Patch, around, mistake, swap
from unialign_jax.models import blocks, layers, mmdit
from unialign_jax.models.attention import attention


@mistake("network", "out_image")
def block_modulation_takes_scale_before_shift(patch: Patch) -> None:
    swap(patch, blocks, "SHIFT_ATTENTION", "SCALE_ATTENTION")
    swap(patch, blocks, "SHIFT_MLP", "SCALE_MLP")


@mistake("network", "out_text_logits")
def modulations_of_attention_and_mlp_are_swapped(patch: Patch) -> None:
    for part in ("SHIFT", "SCALE", "GATE"):
        swap(patch, blocks, f"{part}_ATTENTION", f"{part}_MLP")


@mistake("network", "trace_block0_hidden")
def gate_of_the_mlp_is_taken_for_that_of_the_attention(patch: Patch) -> None:
    swap(patch, blocks, "GATE_ATTENTION", "GATE_MLP")


@mistake("network", "trace_block0_text")
def gates_are_left_out(patch: Patch) -> None:
    patch.setattr(blocks.Stream, "_gated", lambda self, x, gate: x)


@mistake("network", "out_hidden")
def image_head_takes_shift_before_scale(patch: Patch) -> None:
    swap(patch, mmdit, "HEAD_SCALE", "HEAD_SHIFT")


@mistake("network", "out_image")
def scale_is_not_added_to_one(patch: Patch) -> None:
    for module in (blocks, mmdit):
        around(patch, module, "modulate", lambda f, x, shift, scale: f(x, shift, scale - 1))


@mistake("network", "trace_patch_tokens_0")
def positions_are_cropped_at_the_corner(patch: Patch) -> None:
    around(patch, layers, "position_table", _cropped(lambda spare: 0))


@mistake("network", "trace_patch_tokens_1")
def an_odd_crop_is_rounded_up(patch: Patch) -> None:
    around(patch, layers, "position_table", _cropped(lambda spare: (spare + 1) // 2))


def _cropped(start):
    def crop(f, rows, columns, width, *, table_size, **base):
        by_column, by_row = f(table_size, table_size, width, table_size=table_size, **base)
        row, column = start(table_size - rows), start(table_size - columns)
        return by_column[column : column + columns], by_row[row : row + rows]

    return crop


@mistake("network", "trace_patch_tokens_0")
def rows_come_before_columns_in_the_positions(patch: Patch) -> None:
    def embed(f, self, latents):
        tokens = f(self, latents)
        positions = f(self, 0 * latents) - self.patch.bias[...]
        return tokens - positions + jnp.roll(positions, positions.shape[-1] // 2, axis=-1)

    around(patch, mmdit.MMDiT, "embed_image", embed)


@mistake("network", "pos_embed.pos_embed")
def positions_have_cosines_first(patch: Patch) -> None:
    def roll(f, rows, columns, width, **sizes):
        return tuple(np.roll(x, width // 4, axis=1) for x in f(rows, columns, width, **sizes))

    around(patch, layers, "position_table", roll)


@mistake("network", "pos_embed.pos_embed")
def positions_count_cells_instead_of_patches(patch: Patch) -> None:
    def unscaled(f, *args, table_size, base_size):
        return f(*args, table_size=table_size, base_size=table_size)

    around(patch, layers, "position_table", unscaled)


@mistake("network", "trace_time_sincos")
def time_features_have_sines_first(patch: Patch) -> None:
    around(patch, layers, "time_features", lambda f, t, **k: jnp.roll(f(t, **k), 128, axis=1))


@mistake("network", "out_image")
def timesteps_run_from_0_to_1(patch: Patch) -> None:
    around(patch, layers, "time_features", lambda f, t, **k: f(t / 1000, **k))


@mistake("network", "trace_temb")
def time_mlp_has_no_silu(patch: Patch) -> None:
    patch.setattr(mmdit.TimeEmbedding, "__call__", lambda self, x: self.down(self.up(x)))


@mistake("float16", "edit_wide_d2_out_image")
def rounding_of_the_time_features_is_ignored(patch: Patch) -> None:
    around(patch, layers, "time_features", lambda f, t, **k: f(t))


@mistake("network", "trace_time_sincos")
def time_features_are_always_rounded(patch: Patch) -> None:
    around(patch, layers, "time_features", lambda f, t, **k: f(t, round_to_float16=True))


@mistake("network", "trace_block0_hidden")
def gelu_is_exact_instead_of_the_tanh_form(patch: Patch) -> None:
    around(patch, jax.nn, "gelu", lambda f, x, **k: f(x, approximate=False))


# Where tokens are of order 1 this is within float32 noise; the learned null image is smaller.
@mistake("network_without_image", "out_image")
def layer_norm_has_a_larger_eps(patch: Patch) -> None:
    around(patch, layers, "layer_norm", lambda f, x: f(x, 1e-5))


@mistake("network", "trace_block0_norm1_x")
def layer_norm_does_not_subtract_the_mean(patch: Patch) -> None:
    def rms(f, x):
        return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)

    around(patch, layers, "layer_norm", rms)


@mistake("network", "trace_block0_attn_image")
def attention_is_not_scaled(patch: Patch) -> None:
    def unscaled(f, image, text, **options):
        large = [(q * q.shape[-1] ** 0.5, k, v) for q, k, v in (image, text)]
        return f(*large, **options)

    around(patch, blocks, "joint_attention", unscaled)


@mistake("network", "trace_block0_attn_text")
def streams_do_not_see_each_other(patch: Patch) -> None:
    def apart(f, self, image, text, mods, rotations):
        out = []
        for stream, x, mod in ((self.image, image, mods[0]), (self.text, text, mods[1])):
            qkv = stream.queries_keys_values(x, mod)
            out.append(attention(*qkv))
        return tuple(out)

    around(patch, blocks.Block, "joint_attention", apart)


@mistake("network", "out_text_logits")
def last_block_leaves_the_text_alone(patch: Patch) -> None:
    """As in Stable Diffusion 3."""

    def run(f, self, tokens, modulations, rotations, start, stop, *rest):
        before = f(self, tokens, modulations, rotations, start, stop - 1, *rest)
        after = f(self, before, modulations, rotations, stop - 1, stop, *rest)
        return tuple((a[0], b[1]) for a, b in zip(after, before, strict=True))

    around(patch, blocks.Blocks, "run", run)


@mistake("network", "out_image")
def conditions_come_before_the_target(patch: Patch) -> None:
    def embed(f, self, branch):
        image, text = f(self, branch)
        count = image.shape[1] // (1 + len(branch.conditions))
        return jnp.roll(image, -count, axis=1), text

    around(patch, mmdit.MMDiT, "embed", embed)


@mistake("network", "out_image")
def conditions_are_left_out(patch: Patch) -> None:
    around(patch, mmdit.MMDiT, "embed", lambda f, self, b: f(self, b.replace(conditions=())))


@mistake("network_mid", "out_mid_image")
def conditions_count_in_the_mean(patch: Patch) -> None:
    _other_middle(patch, lambda self, image: self.align_image(jnp.mean(image, axis=1)))


@mistake("network_mid", "out_mid_image")
def mean_comes_after_the_adapter(patch: Patch) -> None:
    def pooled(self, image):
        return jnp.mean(self.align_image(image[:, : image.shape[1] // 2]), axis=1)

    _other_middle(patch, pooled)


def _other_middle(patch: Patch, read) -> None:
    def heads(f, self, branch, wanted, tokens, middle, e):
        out = f(self, branch, wanted, tokens, middle, e)
        return out.replace(mid_image=read(self, middle[0])) if wanted.mid_image else out

    around(patch, mmdit.MMDiT, "_heads", heads)


@mistake("network_mid", "out_mid_text")
def adapters_have_no_last_silu(patch: Patch) -> None:
    def adapt(self, x):
        return self.down(jax.nn.silu(self.up(x)))

    patch.setattr(mmdit.Adapter, "__call__", adapt)


@mistake("network_mid", "out_mid_image")
def align_depth_counts_from_0(patch: Patch) -> None:
    def later(f, self, branches, depth):
        return f(self, branches, depth + 1)

    around(patch, mmdit.MMDiT, "forward_branches", later)


@mistake("network_without_image", "out_hidden")
def null_image_goes_through_the_norm_of_the_image_head(patch: Patch) -> None:
    def heads(f, self, branch, *args):
        out = f(self, branch, *args)
        return out.replace(image_hidden=self.image_head.normalise(out.image_hidden, args[-1]))

    around(patch, mmdit.MMDiT, "_heads", heads)


@mistake("network_without_image", "out_text_logits")
def missing_image_is_zeros(patch: Patch) -> None:
    def embed(f, self, branch):
        image, text = f(self, branch)
        return 0 * image, text

    around(patch, mmdit.MMDiT, "embed", embed)


@mistake("network", "out_image")
def patches_of_the_velocity_have_channels_first(patch: Patch) -> None:
    def unpatchify(f, tokens, rows, columns, size):
        by_channel = tokens.reshape(*tokens.shape[:2], -1, size * size).swapaxes(-1, -2)
        return f(by_channel.reshape(tokens.shape), rows, columns, size)

    around(patch, layers, "unpatchify", unpatchify)


@mistake("network", "trace_patch_tokens_0")
def patches_run_down_the_columns(patch: Patch) -> None:
    def patchify(f, x, size):
        rows, columns = x.shape[1] // size, x.shape[2] // size
        tokens = f(x, size)
        by_column = tokens.reshape(len(x), rows, columns, -1).swapaxes(1, 2)
        return by_column.reshape(tokens.shape)

    around(patch, layers, "patchify", patchify)
