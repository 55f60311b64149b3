"""Attention under a mesh: the same numbers, by the collectives that were asked for."""

from __future__ import annotations

import functools
import re

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.models.attention import reference
from unialign_jax.models.attention import attention, joint_attention

MESHES = {
    "data_context4": {"data": 2, "context": 4},
    "all_but_data": {"fsdp": 2, "context": 2, "tensor": 2},
}


def check(run, streams, mesh, tolerance=1e-4):
    """Compares values and gradients of `run` on a mesh with the reference; returns the program."""
    image, text, d_image, d_text = streams
    with jax.set_mesh(mesh):
        heads, found, program = reference.value_and_gradients(run, image, text, d_image, d_text)
    for got, wanted in zip(heads, reference.joint(image, text), strict=True):
        np.testing.assert_allclose(got, wanted, atol=tolerance, rtol=tolerance)
    wanted = reference.joint_gradients(image, text, d_image, d_text)
    for got, want in zip(jax.tree.leaves(found), [*wanted[0], *wanted[1]], strict=True):
        np.testing.assert_allclose(got, want, atol=tolerance, rtol=tolerance)
    return program


def over_tokens(streams, mesh):
    sharding = NamedSharding(mesh, P(("data", "fsdp"), "context", "tensor"))
    return jax.device_put(streams, sharding)


def gathers(program):
    return re.findall(r"= \S+ all-gather(?:-start)?\(", program)


@pytest.mark.parametrize("sizes", MESHES.values(), ids=MESHES)
@pytest.mark.parametrize("context", ["ring", "all_gather"])
def test_tokens_over_context_give_the_same_attention(context, sizes):
    mesh = reference.mesh_of(**sizes)
    streams = over_tokens(reference.streams(), mesh)
    run = functools.partial(joint_attention, context=context)
    program = check(run, streams, mesh)
    if context == "ring":
        assert "collective-permute" in program
        assert gathers(program) == []
    else:
        assert gathers(program)
        assert "collective-permute" not in program


@pytest.mark.parametrize(("context", "image"), [("ring", 256), ("ring", 200), ("all_gather", 200)])
def test_splash_over_context_gives_the_same_attention(context, image):
    mesh = reference.mesh_of(data=2, context=2, tensor=2)
    streams = reference.streams(batch=2, image=image, text=256, heads=2, width=64)
    run = functools.partial(joint_attention, backend="splash", context=context)
    check(run, over_tokens(streams, mesh), mesh)


@pytest.mark.parametrize("backend", ["xla", "xla_by_sample", "splash"])
def test_whole_sequences_on_a_mesh_give_the_same_attention(backend):
    mesh = reference.mesh_of(data=2, fsdp=2, tensor=2)
    streams = over_tokens(reference.streams(image=80, text=48), mesh)
    check(functools.partial(joint_attention, backend=backend), streams, mesh)


def test_one_stream_on_a_mesh_gives_the_same_attention():
    mesh = reference.mesh_of(data=2, fsdp=2, tensor=2)
    qkv = reference.arrays(3, (4, 128, 2, 16))
    with jax.set_mesh(mesh):
        out = jax.jit(functools.partial(attention, backend="splash"))(*qkv)
    np.testing.assert_allclose(out, reference.attend(*qkv)[0], atol=5e-5)


def test_sizes_that_an_axis_does_not_divide_are_not_split():
    mesh = reference.mesh_of(fsdp=2, context=2, tensor=2)
    streams = reference.streams(batch=3, heads=3)
    check(functools.partial(joint_attention, backend="splash"), streams, mesh)


ROWS = ("data", "fsdp")
ALL = (*ROWS, "context", "tensor")


@pytest.mark.parametrize(
    ("manual", "backend", "context"),
    [
        (ROWS, "xla", "ring"),
        (ROWS, "xla", "all_gather"),
        (ROWS, "splash", "ring"),
        ((*ROWS, "context"), "xla", "ring"),
        ((*ROWS, "context"), "splash", "all_gather"),
        (ALL, "splash", "ring"),
        (ALL, "xla_by_sample", "all_gather"),
    ],
)
def test_attention_inside_a_shard_map_of_the_caller(backend, context, manual):
    mesh = reference.mesh_of(data=2, context=2, tensor=2)
    streams = over_tokens(reference.streams(), mesh)
    axes = [("data", "fsdp"), "context", "tensor"]
    spec = P(*(axis if axis in manual or axis == axes[0] else None for axis in axes))

    def run(image, text):
        attend = functools.partial(joint_attention, backend=backend, context=context)
        return jax.shard_map(
            attend, in_specs=(spec, spec), out_specs=spec, axis_names=set(manual), check_vma=False
        )(image, text)

    check(run, streams, mesh)


@pytest.mark.parametrize("backend", ["xla", "xla_by_sample", "splash"])
def test_gradients_taken_inside_a_shard_map_of_the_caller(backend):
    mesh = reference.mesh_of(data=2, fsdp=2, context=2)
    image, text, d_image, d_text = reference.streams()

    def gradients(image, text, d_image, d_text):
        _, pull = jax.vjp(functools.partial(joint_attention, backend=backend), image, text)
        return pull((d_image, d_text))

    rows = P(("data", "fsdp"))
    with jax.set_mesh(mesh):
        found = jax.jit(
            jax.shard_map(
                gradients,
                in_specs=rows,
                out_specs=rows,
                axis_names={"data", "fsdp"},
                check_vma=False,
            )
        )(image, text, d_image, d_text)
    wanted = reference.joint_gradients(image, text, d_image, d_text)
    for got, want in zip(jax.tree.leaves(found), [*wanted[0], *wanted[1]], strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize("stream", ["image", "text"])
def test_a_length_that_context_does_not_divide_is_named(stream):
    image, text, *_ = reference.streams(**{stream: 18})
    said = f"{stream} stream has 18 tokens.*mesh.context=4"
    with jax.set_mesh(reference.mesh_of(context=4)), pytest.raises(ValueError, match=said):
        jax.eval_shape(joint_attention, image, text)
