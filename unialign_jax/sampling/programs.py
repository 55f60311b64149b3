"""The compiled programs of sampling: one for images, one for texts.

JAX compiles each once per combination of batch size, image size, number of conditions, number of
steps and guided or not; the scale, the noise levels and the seeds are inputs. An item's noise
depends on its own seed alone, whatever stands beside it in the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from unialign_jax.models import tiling
from unialign_jax.models.functional import Params
from unialign_jax.parallel import rules
from unialign_jax.sampling import samplers
from unialign_jax.sampling.model import Model

if TYPE_CHECKING:
    from jaxtyping import Float, Int32, UInt8, UInt32

# What an item's key is folded with, by use; the last counts up with the conditions.
START_NOISE, TEXT_DRAWS, IMAGE_DRAWS = range(3)


class Programs:
    """The samplers of one model, compiled on first use.

    Args:
      model: networks and sizes; the parameters are an argument of every call.
    """

    def __init__(self, model: Model):
        self._model = model
        self._images = jax.jit(self._sample_images, static_argnames=("size", "mesh"))
        self._texts = jax.jit(self._sample_texts, static_argnames=("steps", "mesh"))
        self._decode = jax.jit(self._decoded, static_argnames=("mesh",))

    def images(
        self,
        params: Params,
        ids: Int32[np.ndarray, "B L"],
        negative: Int32[np.ndarray, "1 L"] | None,
        conditions: tuple[UInt8[np.ndarray, "B H W 3"], ...],
        seeds: UInt32[np.ndarray, "B 2"],
        *,
        levels: Float[np.ndarray, " S"],
        guidance: float,
        size: tuple[int, int],
    ) -> UInt8[np.ndarray, "B H W 3"]:
        """Images for prompts.

        Args:
          params: of every network of the model.
          ids: the prompts.
          negative: the prompt to be guided away from; None runs unguided.
          conditions: 0 to 3 condition images per item.
          seeds: per item, a seed and what it is folded with.
          levels: noise levels, descending to 0; steps + 1 of them.
          guidance: the scale, of no effect without `negative`.
          size: height and width of the images, in pixels.
        """
        mesh = mesh_of(params)
        ids, conditions, seeds = _place((ids, conditions, seeds), mesh)
        made = self._images(
            params,
            ids,
            negative,
            conditions,
            seeds,
            levels,
            np.float32(guidance),
            size=size,
            mesh=mesh,
        )
        if self._model.latents.autoencoder is None:
            return np.asarray(made)
        # By itself: large images are decoded in tiles, whatever the sampling needs.
        decoded = tiling.decode_tiled(
            lambda tile: self._decode(params["vae"], tile, mesh=mesh),
            made,
            self._model.latents.factor,
        )
        return to_uint8(decoded)

    def texts(
        self,
        params: Params,
        images: UInt8[np.ndarray, "B H W 3"],
        ids: Int32[np.ndarray, "B L"],
        seeds: UInt32[np.ndarray, "B 2"],
        *,
        steps: int,
    ) -> Int32[np.ndarray, "B L"]:
        """Fills in the masked tokens of `ids`, texts about `images`."""
        mesh = mesh_of(params)
        images, ids, seeds = _place((images, ids, seeds), mesh)
        return np.asarray(self._texts(params, images, ids, seeds, steps=steps, mesh=mesh))

    def _sample_images(
        self, params, ids, negative, conditions, seeds, levels, guidance, *, size, mesh
    ):
        encode_text = self._model.text_encoder.bind(params["text_encoder"])
        prompt = encode_text(ids)
        if negative is not None:
            negative = jnp.broadcast_to(encode_text(negative), prompt.shape)
        space = self._model.latents
        shape = (*(side // space.factor for side in size), space.channels)
        start = _normal(seeds, START_NOISE, shape)
        latents, _ = samplers.sample_image(
            self._model.transformer.bind(params["transformer"]),
            start,
            prompt,
            negative,
            tuple(self._encoded(params, c, seeds, i) for i, c in enumerate(conditions)),
            sigmas=levels,
            guidance=guidance,
        )
        made = latents if space.autoencoder is not None else space.decode(params, latents)
        return _gathered(made, mesh)

    def _encoded(self, params, images, seeds, index):
        """Latents of given images; those of an autoencoder are drawn, as in the reference."""
        space = self._model.latents
        noise = None
        if space.autoencoder is not None:
            sides = (side // space.factor for side in images.shape[1:3])
            noise = _normal(seeds, IMAGE_DRAWS + index, (*sides, space.channels))
        return space.encode(params, images, noise)

    def _decoded(self, params, latents, *, mesh):
        network = self._model.latents.autoencoder
        assert network is not None
        return _gathered(network.bind(params).decode(latents), mesh)

    def _sample_texts(self, params, images, ids, seeds, *, steps, mesh):
        shape = (ids.shape[1], self._model.config.vocab_size)
        keys = _keys(seeds, TEXT_DRAWS)

        def uniform(step: Any) -> Any:
            folded = jax.vmap(lambda key: jax.random.fold_in(key, step))(keys)
            return jax.vmap(lambda key: jax.random.uniform(key, shape))(folded)

        tokens, _ = samplers.sample_text(
            self._model.transformer.bind(params["transformer"]),
            self._model.text_encoder.bind(params["text_encoder"]),
            self._encoded(params, images, seeds, 0),
            ids,
            uniform,
            steps=steps,
            mask_id=self._model.tokenizer.mask_id,
            temperature=self._model.sample.text_temperature,
        )
        return _gathered(tokens, mesh)


def mesh_of(params: Params) -> Mesh | None:
    """The mesh that the parameters live on; None where they are not spread over one."""
    sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
    mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
    return mesh if isinstance(mesh, Mesh) else None


def parts_of(mesh: Mesh | None) -> int:
    """The number of pieces that a batch is cut into; batch sizes are multiples of it."""
    return 1 if mesh is None else int(np.prod([mesh.shape[axis] for axis in rules.BATCH_AXES]))


def to_uint8(images: Float[np.ndarray, "B H W 3"]) -> UInt8[np.ndarray, "B H W 3"]:
    """[-1, 1] to bytes, rounded and clipped."""
    return np.round(np.clip((images + 1.0) * 127.5, 0.0, 255.0)).astype(np.uint8)


def _normal(seeds: Any, use: int, shape: tuple[int, ...]) -> Any:
    return jax.vmap(lambda key: jax.random.normal(key, shape))(_keys(seeds, use))


def _keys(seeds: Any, use: int) -> Any:
    def key(pair: Any) -> Any:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(pair[0]), pair[1]), use)

    return jax.vmap(key)(seeds)


def _place(batch: Any, mesh: Mesh | None) -> Any:
    return batch if mesh is None else jax.device_put(batch, rules.batch_sharding(mesh))


def _gathered(result: Any, mesh: Mesh | None) -> Any:
    """Whole on every device, so that any process of a training run can read it."""
    if mesh is None:
        return result
    return jax.lax.with_sharding_constraint(result, rules.replicated(mesh))
