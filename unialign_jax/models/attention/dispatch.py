"""The one attention function of the models: which implementation runs, and where."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, cast

import jax
import jax.numpy as jnp

from unialign_jax.models.attention import cudnn, partition, splash, xla
from unialign_jax.models.attention.context import (
    CONTEXT_METHODS,
    Block,
    ContextMethod,
    all_gather_attention,
    ring_attention,
)

if TYPE_CHECKING:
    from jaxtyping import Array, Float

Backend = Literal["xla", "xla_by_sample", "cudnn", "splash"]
BACKENDS: tuple[Backend, ...] = ("xla", "xla_by_sample", "cudnn", "splash")

# A splash tile; below it a kernel would mostly work on padding.
_SPLASH_SHORTEST = splash.LANES
_WIDEST_HEAD = 128
# From here on a sample's logits are enough work for cores to take one each.
_BY_SAMPLE_SHORTEST = 256


def default_backend(
    platform: str, dtype: Any = "bfloat16", length: int = 1280, head_dim: int = 64
) -> Backend:
    """The implementation for a platform, a compute dtype, a number of tokens and a head's width.

    splash on TPUs (bfloat16 and float32, from 128 tokens), cuDNN's fused kernel on NVIDIA GPUs in
    16-bit types, both up to 128 channels a head; XLA everywhere else, by the sample on CPUs from
    256 tokens.

    Args:
      platform: as `jax.Device.platform` says: "cpu", "gpu" or "tpu".
      dtype: of queries, keys and values.
      length: tokens, the fewer of queries and keys.
      head_dim: channels of a head.
    """
    dtype = jnp.dtype(dtype)
    if platform == "cpu":
        return "xla_by_sample" if length >= _BY_SAMPLE_SHORTEST else "xla"
    if head_dim > _WIDEST_HEAD:
        return "xla"
    if platform == "tpu" and length >= _SPLASH_SHORTEST and dtype in (jnp.bfloat16, jnp.float32):
        return "splash"
    if platform in ("gpu", "cuda") and dtype in (jnp.bfloat16, jnp.float16):
        return "cudnn"
    return "xla"


def traced_platform() -> str:
    """The platform that the program being traced is for.

    That of the mesh in `jax.set_mesh`, which may be of devices that this machine lacks (a TPU
    topology compiled for on a CPU); without a mesh, JAX's default.
    """
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    return jax.default_backend() if device is None else device.platform


def attention(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S H K"],
    v: Float[Array, "B S H K"],
    *,
    backend: Backend | Literal["auto"] = "auto",
    splash_settings: splash.SplashSettings = splash.DEFAULTS,
) -> Float[Array, "B T H K"]:
    """softmax(q k^T / sqrt(K)) v over all keys, without a mask; softmax in float32.

    Args:
      q: queries.
      k: keys.
      v: values.
      backend: one of `BACKENDS`, or "auto" for `default_backend`.
      splash_settings: tiling, if splash runs.

    Raises:
      ValueError: an unknown backend.
    """
    chosen = _resolve(backend, q, min(q.shape[1], k.shape[1]))
    attend = _local(chosen, splash_settings)
    return attend(q, k, v) if chosen == "xla" else partition.per_device(attend, (q, k, v))


def joint_attention(
    image: tuple[Float[Array, "B N H K"], Float[Array, "B N H K"], Float[Array, "B N H K"]],
    text: tuple[Float[Array, "B L H K"], Float[Array, "B L H K"], Float[Array, "B L H K"]],
    *,
    backend: Backend | Literal["auto"] = "auto",
    context: ContextMethod = "ring",
    splash_settings: splash.SplashSettings = splash.DEFAULTS,
) -> tuple[Float[Array, "B N H K"], Float[Array, "B L H K"]]:
    """Attention of both streams to the keys of both: one softmax over N + L keys.

    Under a mesh whose `context` axis has more than one device both streams' tokens lie over it,
    each device attending for its own. Inside a `jax.shard_map` over `context` N and L are
    a device's own tokens.

    Args:
      image: the image stream's (q, k, v).
      text: the text stream's (q, k, v).
      backend: one of `BACKENDS`, or "auto" for `default_backend`. cuDNN's kernel cannot be part
        of a ring, whose blocks plain products compute then.
      context: how devices see the keys of the others: "ring" passes them on, "all_gather" brings
        them together first.
      splash_settings: tiling, if splash runs.

    Returns:
      The two streams' heads.

    Raises:
      ValueError: an unknown backend or method, or a stream that `mesh.context` does not divide.
    """
    if context not in CONTEXT_METHODS:
        raise ValueError(f"context attention {context!r}: choose one of {CONTEXT_METHODS}")
    chosen = _resolve(backend, image[0], image[0].shape[1] + text[0].shape[1])
    manual, free = partition.axes()
    inside = manual.get(partition.CONTEXT_AXIS, 1) > 1
    devices = free.get(partition.CONTEXT_AXIS, 1)
    _check_lengths({"image": image[0], "text": text[0]}, devices)

    attend: Callable[..., Any] = _local(chosen, splash_settings)
    if inside or devices > 1:
        axis = partition.CONTEXT_AXIS
        if context == "all_gather":
            attend = functools.partial(all_gather_attention, attend=attend, axis=axis)
        else:
            block = _block(chosen, splash_settings)
            attend = functools.partial(ring_attention, block=block, axis=axis)

    def of_both(*arrays: Any) -> tuple[Any, Any]:
        q, k, v = (jnp.concatenate(p, axis=1) for p in zip(arrays[:3], arrays[3:], strict=True))
        heads = attend(q, k, v)
        count = arrays[0].shape[1]
        return heads[:, :count], heads[:, count:]

    if chosen == "xla" and devices == 1 and not inside:
        return of_both(*image, *text)
    return partition.per_device(of_both, (*image, *text), over_context=devices > 1)


def _resolve(backend: str, q: Any, length: int) -> Backend:
    if backend == "auto":
        return default_backend(traced_platform(), q.dtype, length, q.shape[-1])
    if backend not in BACKENDS:
        raise ValueError(f"attention backend {backend!r}: choose one of {('auto', *BACKENDS)}")
    return cast(Backend, backend)


def _local(backend: Backend, settings: splash.SplashSettings) -> Callable[..., Any]:
    """Attention on one device."""
    if backend == "splash":
        return functools.partial(splash.attend, settings=settings, interpret=_interpreted())
    plain = {"cudnn": cudnn.attend, "xla_by_sample": xla.attend_by_sample}
    return plain.get(backend, xla.attend)


def _block(backend: Backend, settings: splash.SplashSettings) -> Block:
    """One step of the ring."""
    if backend == "splash":
        return splash.SplashBlock(settings, _interpreted())
    return xla.XlaBlock()


def _interpreted() -> bool:
    return traced_platform() == "cpu"


def _check_lengths(queries: dict[str, Any], devices: int) -> None:
    for stream, q in queries.items():
        if q.shape[1] % devices:
            raise ValueError(
                f"the {stream} stream has {q.shape[1]} tokens, which mesh.context={devices} does "
                "not divide: choose another mesh.context or another length"
            )
