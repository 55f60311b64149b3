"""Each implementation of attention equals softmax(q k^T / sqrt(K)) v in value and gradient."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.attention import reference
from unialign_jax.models.attention import (
    BACKENDS,
    CHECKPOINT_NAME,
    SplashSettings,
    attention,
    default_backend,
    joint_attention,
)
from unialign_jax.models.attention.splash import block_length


def with_gradients(q, k, v, d_out, **options):
    def run(q, k, v):
        out, pull = jax.vjp(lambda *qkv: attention(*qkv, **options), q, k, v)
        return out, pull(jnp.asarray(d_out))

    return jax.jit(run).lower(q, k, v).compile(reference.QUICKLY)(q, k, v)


def check(q, k, v, d_out, tolerance, **options):
    out, found = with_gradients(q, k, v, d_out, **options)
    assert out.dtype == q.dtype
    np.testing.assert_allclose(out, reference.attend(q, k, v)[0], atol=tolerance, rtol=tolerance)
    for got, wanted in zip(found, reference.gradients(q, k, v, d_out), strict=True):
        np.testing.assert_allclose(got, wanted, atol=tolerance, rtol=tolerance)


def test_the_reference_and_its_gradients_agree_with_automatic_differentiation():
    q, k, v, d_out = reference.arrays(4, (2, 5, 2, 4))

    def plain(q, k, v):
        weights = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k) / 2.0, axis=-1)
        return jnp.einsum("bhts,bshk->bthk", weights, v)

    @jax.jit
    def run(q, k, v):
        out, pull = jax.vjp(plain, q, k, v)
        return out, pull(jnp.asarray(d_out))

    out, found = run(q, k, v)
    np.testing.assert_allclose(out, reference.attend(q, k, v)[0], atol=1e-5)
    for got, wanted in zip(found, reference.gradients(q, k, v, d_out), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_xla_equals_the_reference():
    check(*reference.arrays(4, (2, 40, 3, 16)), 2e-5, backend="xla")


@pytest.mark.parametrize("batch", [1, 3, 11, 18])
def test_xla_by_sample_equals_the_reference(batch):
    check(*reference.arrays(4, (batch, 40, 3, 16)), 2e-5, backend="xla_by_sample")


def test_xla_by_sample_in_bfloat16_stays_within_its_rounding():
    check(*reference.arrays(4, (2, 128, 2, 64), "bfloat16"), 6e-2, backend="xla_by_sample")


def test_xla_by_sample_holds_no_logits_of_two_samples():
    q, k, v = reference.arrays(3, (4, 40, 3, 16))
    program = str(jax.make_jaxpr(functools.partial(attention, backend="xla_by_sample"))(q, k, v))
    assert "[1,3,40,40]" in program
    assert "[4,3,40,40]" not in program


def test_xla_attends_to_another_number_of_keys():
    (q,) = reference.arrays(1, (2, 3, 2, 8))
    k, v = reference.arrays(2, (2, 9, 2, 8), seed=1)
    out = jax.jit(attention)(q, k, v)
    np.testing.assert_allclose(out, reference.attend(q, k, v)[0], atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        SplashSettings(),
        SplashSettings(largest_block=128),
        SplashSettings(largest_block=128, longest_fused=0),
        SplashSettings(largest_block=128, tokens_minor=False),
    ],
    ids=["default", "two_blocks", "two_kernels", "channels_minor"],
)
def test_splash_equals_the_reference(settings):
    arrays = reference.arrays(4, (2, 256, 2, 64))
    check(*arrays, 5e-5, backend="splash", splash_settings=settings)


@pytest.mark.parametrize("length", [100, 200])
def test_splash_ignores_the_padding_of_an_odd_length(length):
    check(*reference.arrays(4, (1, length, 2, 64)), 5e-5, backend="splash")


def test_splash_in_bfloat16_stays_within_its_rounding():
    check(*reference.arrays(4, (1, 128, 2, 64), "bfloat16"), 6e-2, backend="splash")


@pytest.mark.parametrize("length", [1280, 2304, 3328, 4352])
def test_blocks_of_the_shipped_lengths_divide_them(length):
    block = block_length(length, 768)
    assert block == {1280: 640, 2304: 768, 3328: 256, 4352: 256}[length]


@pytest.mark.parametrize("backend", ["xla", "xla_by_sample", "splash"])
def test_joint_attention_is_one_softmax_over_both_streams(backend):
    image, text, d_image, d_text = reference.streams(batch=2, image=70, text=30, heads=2)
    heads, found, _ = reference.value_and_gradients(
        lambda i, t: joint_attention(i, t, backend=backend), image, text, d_image, d_text
    )
    wanted = reference.joint(image, text)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5), list(heads), wanted)
    wanted = reference.joint_gradients(image, text, d_image, d_text)
    for got, want in zip(found, wanted, strict=True):
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)


def test_the_default_on_a_cpu_is_the_same_to_the_last_bit_as_plain_products():
    q, k, v = reference.arrays(3, (2, 20, 3, 16))

    @jax.jit
    def plain(q, k, v):
        q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
        logits = jnp.einsum("BHTK,BHSK->BHTS", q, k)
        weights = jax.nn.softmax(logits * q.shape[-1] ** -0.5, axis=-1)
        return jnp.einsum("BHTS,BHSK->BHTK", weights, v).transpose(0, 2, 1, 3)

    assert np.array_equal(jax.jit(attention)(q, k, v), plain(q, k, v))
    assert "pallas" not in str(jax.make_jaxpr(attention)(q, k, v))


@pytest.mark.parametrize(
    ("platform", "dtype", "length", "head_dim", "backend"),
    [
        ("tpu", "bfloat16", 1280, 64, "splash"),
        ("tpu", "float32", 128, 64, "splash"),
        ("tpu", "bfloat16", 127, 64, "xla"),
        ("tpu", "float16", 1280, 64, "xla"),
        ("tpu", "bfloat16", 1280, 512, "xla"),
        ("gpu", "bfloat16", 1280, 64, "cudnn"),
        ("gpu", "float16", 77, 128, "cudnn"),
        ("gpu", "float32", 1280, 64, "xla"),
        ("gpu", "bfloat16", 1280, 256, "xla"),
        ("cpu", "bfloat16", 1280, 64, "xla_by_sample"),
        ("cpu", "float32", 256, 512, "xla_by_sample"),
        ("cpu", "float32", 255, 64, "xla"),
    ],
)
def test_the_default_follows_platform_dtype_and_shape(platform, dtype, length, head_dim, backend):
    assert default_backend(platform, dtype, length, head_dim) == backend
    assert backend in BACKENDS


@pytest.mark.parametrize("backend", ["xla", "xla_by_sample", "splash"])
def test_a_remat_policy_saves_attention_by_name(backend):
    q, k, v = reference.arrays(3, (1, 128, 1, 64))
    policy = jax.checkpoint_policies.save_only_these_names(CHECKPOINT_NAME)

    def score(q):
        attend = jax.checkpoint(lambda q: attention(q, k, v, backend=backend), policy=policy)
        return jnp.sum(attend(q))

    names = str(jax.make_jaxpr(jax.grad(score))(q)).count(f"name={CHECKPOINT_NAME}")
    # Splash's backward kernels need the log-sum-exp as well as the output.
    assert names >= (2 if backend == "splash" else 1)


def test_an_unknown_backend_or_method_is_named():
    q, k, v = reference.arrays(3, (1, 8, 1, 8))
    with pytest.raises(ValueError, match="'flash'.*auto.*xla.*cudnn.*splash"):
        attention(q, k, v, backend="flash")
    with pytest.raises(ValueError, match="'tree'.*ring.*all_gather"):
        joint_attention((q, k, v), (q, k, v), context="tree")
