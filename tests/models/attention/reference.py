"""Attention in float64 NumPy, with its gradients written out, and inputs to compare on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

# Compiles in half the time.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def attend(q, k, v):
    """softmax(q k^T / sqrt(K)) v over [B T H K], and the weights."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    logits = np.einsum("bthk,bshk->bhts", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhts,bshk->bthk", weights, v), weights


def gradients(q, k, v, d_out):
    """Gradients of sum(attend(q, k, v) * d_out)."""
    q, k, v, d_out = (np.asarray(x, np.float64) for x in (q, k, v, d_out))
    weights = attend(q, k, v)[1]
    d_weights = np.einsum("bthk,bshk->bhts", d_out, v)
    d_logits = weights * (d_weights - (d_weights * weights).sum(-1, keepdims=True))
    d_logits /= np.sqrt(q.shape[-1])
    d_q = np.einsum("bhts,bshk->bthk", d_logits, k)
    d_k = np.einsum("bhts,bthk->bshk", d_logits, q)
    return d_q, d_k, np.einsum("bhts,bthk->bshk", weights, d_out)


def joint(image, text):
    """Both streams' outputs: one softmax over the keys of both."""
    joined = [np.concatenate(pair, axis=1) for pair in zip(image, text, strict=True)]
    return np.split(attend(*joined)[0], [image[0].shape[1]], axis=1)


def joint_gradients(image, text, d_image, d_text):
    """Gradients of both streams' q, k, v."""
    joined = [np.concatenate(pair, axis=1) for pair in zip(image, text, strict=True)]
    d_out = np.concatenate([d_image, d_text], axis=1)
    parts = [np.split(g, [d_image.shape[1]], axis=1) for g in gradients(*joined, d_out)]
    return [part[0] for part in parts], [part[1] for part in parts]


def arrays(count, shape, dtype="float32", seed=0):
    """Normal numbers, wide enough for a softmax that is far from uniform."""
    draws = 1.5 * np.random.default_rng(seed).normal(size=(count, *shape))
    return list(draws.astype(jnp.dtype(dtype)))


def streams(batch=4, image=24, text=16, heads=4, width=16, seed=0, dtype="float32"):
    """(image q, k, v), (text q, k, v), and gradients of both outputs."""
    of_image = arrays(4, (batch, image, heads, width), dtype, seed)
    of_text = arrays(4, (batch, text, heads, width), dtype, seed + 1)
    return tuple(of_image[:3]), tuple(of_text[:3]), of_image[3], of_text[3]


def mesh_of(data=1, fsdp=1, context=1, tensor=1):
    """A mesh over as many of the fake CPU devices as its axes need."""
    sizes = (data, fsdp, context, tensor)
    return jax.make_mesh(
        sizes,
        ("data", "fsdp", "context", "tensor"),
        axis_types=(AxisType.Auto,) * 4,
        devices=jax.devices()[: int(np.prod(sizes))],
    )


def value_and_gradients(function, image, text, d_image, d_text):
    """A jitted (values, gradients) of joint attention, called and shown as compiled text."""

    def scored(image, text):
        heads = function(image, text)
        pairs = zip(heads, (d_image, d_text), strict=True)
        return sum(jnp.sum((h * d).astype(jnp.float32)) for h, d in pairs), heads

    lowered = jax.jit(jax.value_and_grad(scored, argnums=(0, 1), has_aux=True)).lower(image, text)
    # The numbers are what is looked at, not the speed.
    compiled = lowered.compile(QUICKLY)
    (_, heads), found = compiled(image, text)
    return heads, found, compiled.as_text()
