"""Splash compiles for a real TPU topology, forward and backward, on a machine without a TPU."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from unialign_jax.models.attention import attention, joint_attention, traced_platform
from unialign_jax.models.attention.splash import longest_fused
from unialign_jax.planning import topology

AXES = ("data", "fsdp", "context", "tensor")
# libtpu asks the network and the machine for a TPU unless it is told what to be.
QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_LOG_DIR": "disabled",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@pytest.fixture
def tpu_mesh(monkeypatch):
    """A function of axis sizes: a mesh over the four chips of a v5e 2x2 slice."""
    pytest.importorskip("libtpu")
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)
    from jax.experimental import topologies

    chips = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    return lambda *sizes: Mesh(
        np.array(chips).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * 4
    )


def compiled(function, mesh, count, shape, dtype="bfloat16"):
    """The gradients' program as text, for `count` arrays split over the mesh."""
    sharding = NamedSharding(mesh, P(("data", "fsdp"), "context", "tensor"))
    arrays = [jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=sharding)] * count

    def score(*arrays):
        return sum(jnp.sum(x.astype(jnp.float32)) for x in jax.tree.leaves(function(*arrays)))

    with jax.set_mesh(mesh):
        assert traced_platform() == "tpu"
        return (
            jax.jit(jax.grad(score, argnums=tuple(range(count)))).lower(*arrays).compile().as_text()
        )


def kernels(program):
    return program.count('custom_call_target="tpu_custom_call"')


def test_a_program_for_a_tpu_attends_by_splash_without_being_told(tpu_mesh):
    program = compiled(attention, tpu_mesh(1, 2, 1, 2), 3, (2, 256, 4, 64))
    # Forward; the gradients of q, k and v.
    assert kernels(program) == 2
    assert "all-gather" not in program


def test_a_ring_for_a_tpu_inside_the_shard_map_of_a_trainer(tpu_mesh):
    rows = P(("data", "fsdp"))

    def ring(*arrays):
        return joint_attention(arrays[:3], arrays[3:], context="ring")

    split = functools.partial(jax.shard_map, in_specs=rows, out_specs=rows, check_vma=False)
    ring_by_rows = split(ring, axis_names={"data", "fsdp"})
    program = compiled(ring_by_rows, tpu_mesh(1, 2, 2, 1), 6, (2, 256, 2, 64))
    # Two kernels for each of the two blocks of keys.
    assert kernels(program) == 4
    # Keys and values pass once in each direction, their gradients twice.
    assert len(re.findall(r" collective-permute-start\(", program)) == 8 - 2
    assert "all-gather" not in program


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "head_dim"), [("bfloat16", 64), ("float32", 128)])
def test_the_longest_keys_of_one_backward_kernel_fit_a_v5p(dtype, head_dim):
    """Of the chips that are compiled for, the one whose vector memory refuses first."""
    pytest.importorskip("libtpu")
    chip = topology.devices(topology.parse("v5p:2x2x1"))[:1]
    mesh = Mesh(np.array(chip).reshape(1, 1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 4)
    length = longest_fused(dtype, head_dim)
    program = compiled(attention, mesh, 3, (1, length, 2, head_dim), dtype)
    assert kernels(program) == 2
    program = compiled(attention, mesh, 3, (1, length + 128, 2, head_dim), dtype)
    assert kernels(program) == 3
