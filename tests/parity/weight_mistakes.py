"""Deliberate mistakes in the reading of the reference's weights."""

from __future__ import annotations

import dataclasses

from tests.parity.mistakes import Patch, around, mistake
from unialign_jax.convert import names


@mistake("network", "trace_block0_attn_image")
def heads_are_interleaved_over_channels(patch: Patch) -> None:
    def interleave(f, path, of, heads):
        for entry in f(path, of, heads):
            yield dataclasses.replace(entry, to_ours=_mixed(entry.to_ours))

    around(patch, names, "_qkv", interleave)


def _mixed(to_ours):
    def convert(arrays):
        x = to_ours(arrays)
        *front, heads, size = x.shape
        return x.reshape(*front, size, heads).swapaxes(-1, -2)

    return convert


@mistake("network", "trace_block0_attn_image")
def queries_and_keys_are_swapped(patch: Patch) -> None:
    around(patch, names, "_qkv", lambda f, path, of, h: f(path, (of[1], of[0], of[2]), h))


@mistake("network", "trace_block0_attn_text")
def keys_and_values_are_swapped(patch: Patch) -> None:
    around(patch, names, "_qkv", lambda f, path, of, h: f(path, (of[0], of[2], of[1]), h))


@mistake("network", "trace_patch_tokens_0")
def patch_convolution_is_read_with_channels_first(patch: Patch) -> None:
    def entries(f, size):
        kernel, bias = f(size)
        yield dataclasses.replace(kernel, to_ours=lambda a: a[0].reshape(len(a[0]), -1).T)
        yield bias

    around(patch, names, "_patch", entries)


@mistake("network", "trace_block0_attn_image")
def square_kernels_are_not_transposed(patch: Patch) -> None:
    def entries(f, path, name):
        kernel, bias = f(path, name)
        square = lambda a: a[0] if a[0].shape[0] == a[0].shape[1] else a[0].T
        yield from (dataclasses.replace(kernel, to_ours=square), bias)

    around(patch, names, "linear", entries)


@mistake("network", "trace_block0_norm1_gate_msa")
def modulation_vectors_are_interleaved(patch: Patch) -> None:
    def entries(f, path, name, chunks):
        kernel, bias = f(path, name, chunks)
        mixed = lambda a: a[0].reshape(-1, chunks, a[0].shape[1]).swapaxes(0, 1).reshape(a[0].shape)
        yield from (dataclasses.replace(kernel, to_ours=mixed), bias)

    around(patch, names, "_rows", entries)
