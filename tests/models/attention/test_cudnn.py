"""cuDNN's kernel: run where there is an NVIDIA GPU, lowered for one everywhere."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.attention import reference
from unialign_jax.models.attention import attention, joint_attention


def lowered(function, *shapes):
    """The program for a GPU, forward and backward."""

    def score(*arrays):
        return sum(jnp.sum(x.astype(jnp.float32)) for x in jax.tree.leaves(function(*arrays)))

    traced = jax.jit(jax.grad(score, argnums=tuple(range(len(shapes))))).trace(*shapes)
    return traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.fixture
def some_cudnn(monkeypatch):
    """JAX asks for the installed version before it lowers; any recent one will do."""
    module = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(module, "check_cudnn_version", lambda: 91100)


@pytest.mark.usefixtures("some_cudnn")
def test_the_program_for_a_gpu_calls_the_fused_kernels():
    shape = jax.ShapeDtypeStruct((2, 128, 4, 64), jnp.bfloat16)
    program = lowered(lambda *qkv: attention(*qkv, backend="cudnn"), shape, shape, shape)
    assert "__cudnn$fmhaSoftmax" in program
    assert "__cudnn$fmhaSoftmaxBackward" in program


@pytest.mark.usefixtures("some_cudnn")
def test_the_program_for_gathered_tokens_calls_the_fused_kernels():
    image, text = (jax.ShapeDtypeStruct((4, n, 4, 64), jnp.bfloat16) for n in (64, 32))
    with jax.set_mesh(reference.mesh_of(data=2, context=2, tensor=2)):
        program = lowered(
            lambda i, t: joint_attention((i,) * 3, (t,) * 3, backend="cudnn", context="all_gather"),
            image,
            text,
        )
    assert "all_gather" in program
    # One device's part: 4 / 2 samples, 4 / 2 heads, its 48 queries to all 96 keys.
    assert "__cudnn$fmhaSoftmaxBackward" in program
    assert "tensor<2x48x2x64xbf16>, tensor<2x96x2x64xbf16>" in program


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="there is no GPU here")
def test_cudnn_equals_the_reference():
    q, k, v, d_out = reference.arrays(4, (2, 256, 4, 64), "bfloat16")
    out, pull = jax.vjp(jax.jit(lambda *qkv: attention(*qkv, backend="cudnn")), q, k, v)
    np.testing.assert_allclose(out, reference.attend(q, k, v)[0], atol=0.06, rtol=0.06)
    for got, wanted in zip(pull(d_out), reference.gradients(q, k, v, d_out), strict=True):
        np.testing.assert_allclose(got, wanted, atol=0.06, rtol=0.06)
