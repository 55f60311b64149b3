"""Images as Qwen2.5-VL's tower sees them, and the two semantic targets that UniAlignment aligns to.

Sides are rounded to whole tokens, pixels resized (bicubic, a = -0.5, antialiased, not clamped),
normalised with CLIP's mean and deviation and cut into patches. All of it is a fixed function of the
pixels for a given size, so that it compiles into the program of the tower.

The targets: of an image, the mean over its tokens; of a text, the mean over the input embeddings of
its padded ids, padding included. No language model runs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from unialign_jax.models.teachers.qwen_layout import CHANNELS, Grid, QwenVisionConfig
from unialign_jax.models.teachers.qwen_vision import QwenVision

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
PUBLISHED = QwenVisionConfig()
MIN_PIXELS, MAX_PIXELS = 56 * 56, 28 * 28 * 1280
MAX_RATIO = 200


def smart_resize(
    height: int,
    width: int,
    factor: int = PUBLISHED.patch_size * PUBLISHED.merge,
    min_pixels: int = MIN_PIXELS,
    max_pixels: int = MAX_PIXELS,
) -> tuple[int, int]:
    """The size to which an image is resized: multiples of `factor` near its own, within bounds.

    Sides are rounded half to even. Where their product leaves the bounds, both are instead scaled
    by sqrt(bound / (height x width)) and rounded down (above `max_pixels`) or up (below
    `min_pixels`).

    Args:
      height: in pixels.
      width: in pixels.
      factor: pixels per side of a token.
      min_pixels: lower bound of height x width of the result.
      max_pixels: upper bound.

    Returns:
      (height, width) in pixels.

    Raises:
      ValueError: a side below 1, or one side more than 200 times the other.
    """
    if min(height, width) < 1:
        raise ValueError(f"the image is {height} x {width} pixels: at least 1 x 1")
    if max(height, width) > MAX_RATIO * min(height, width):
        raise ValueError(
            f"the image is {height} x {width} pixels: no side may be more than {MAX_RATIO} times "
            "the other; crop it"
        )
    sides = (height, width)
    rounded = tuple(round(side / factor) * factor for side in sides)
    if math.prod(rounded) > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rounded = tuple(max(1, math.floor(side / shrink / factor)) * factor for side in sides)
    elif math.prod(rounded) < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rounded = tuple(math.ceil(side * grow / factor) * factor for side in sides)
    return rounded[0], rounded[1]


def resize(images: Float[Array, "*B H W C"], height: int, width: int) -> Float[Array, "*B h w C"]:
    """Bicubic resizing, a = -0.5, antialiased where it shrinks; float32, overshoot kept.

    Equal to PyTorch's antialiased bicubic up to the rounding of positions in float32: 1e-5 of a
    pixel where the image has some hundred.
    """
    shape = (*images.shape[:-3], height, width, images.shape[-1])
    return jax.image.resize(images.astype(jnp.float32), shape, "cubic", antialias=True)


def patch_grid(height: int, width: int, config: QwenVisionConfig = PUBLISHED) -> Grid:
    """The grid, in patches, into which one image of a size in pixels is cut.

    Raises:
      ValueError: as `smart_resize`.
    """
    height, width = smart_resize(height, width, config.patch_size * config.merge)
    return ((1, height // config.patch_size, width // config.patch_size),)


def patches(
    images01: Float[Array, "*B H W 3"], config: QwenVisionConfig = PUBLISHED
) -> tuple[Float[Array, "*B P C"], Grid]:
    """Resizes, normalises and cuts an image, or several of one size.

    Args:
      images01: in [0, 1].
      config: of the tower, for the sizes of a patch and of a token.

    Returns:
      float32 patches in the order (token row, token column, row in it, column in it), each
      flattened as (channel, frame, row, column), and the grid of one image in patches, which is
      static: it depends on shapes alone.

    Raises:
      ValueError: not floats, not images of three channels, or as `smart_resize`.
    """
    if images01.ndim < 3 or images01.shape[-1] != CHANNELS:
        raise ValueError(f"images are {tuple(images01.shape)}: give (..., height, width, 3)")
    if not jnp.issubdtype(images01.dtype, jnp.floating):
        raise ValueError(f"images are {images01.dtype}: give floats, bytes divided by 255")
    *batch, height, width, _ = images01.shape
    grid = patch_grid(height, width, config)
    (_, rows, columns), side, merge = grid[0], config.patch_size, config.merge
    x = resize(jnp.asarray(images01), rows * side, columns * side)
    x = (x - np.array(IMAGE_MEAN, np.float32)) / np.array(IMAGE_STD, np.float32)
    x = x.reshape(-1, rows // merge, merge, side, columns // merge, merge, side, CHANNELS)
    # b, R r y, C c x, channel -> b, R C r c, channel, y x; then the frames behind the channel.
    x = jnp.einsum("bRryCcxk->bRCrckyx", x)[..., None, :, :]
    x = jnp.broadcast_to(x, (*x.shape[:-3], config.frames, side, side))
    return x.reshape(*batch, rows * columns, -1), grid


def image_tokens(tower: QwenVision, images01: Float[Array, "*B H W 3"]) -> Float[Array, "*B N O"]:
    """Tokens of images of one size, given in [0, 1]; no image sees another.

    Raises:
      ValueError: as `patches`.
    """
    cut, grid = patches(images01, tower.config)
    tokens = tower(cut.reshape(-1, *cut.shape[-2:]), grid)
    return tokens.reshape(*cut.shape[:-2], *tokens.shape[-2:])


def image_features(tower: QwenVision, images: Float[Array, "*B H W 3"]) -> Float[Array, "*B O"]:
    """The semantic target of images: the mean of their tokens.

    Args:
      tower: the vision tower.
      images: of one size, nominally in [-1, 1]; what lies outside is clamped.

    Returns:
      float32, `out_width` numbers per image.

    Raises:
      ValueError: as `patches`.
    """
    images01 = jnp.clip((images.astype(jnp.float32) + 1) / 2, 0, 1)
    return jnp.mean(image_tokens(tower, images01).astype(jnp.float32), axis=-2)


def text_features(
    embedding_table: Float[Array, "V E"], padded_ids: Int[Array, "*B L"]
) -> Float[Array, "*B E"]:
    """The semantic target of texts: the mean of their input embeddings, padding included.

    Because padding counts, the target of a text depends on the length to which it is padded.

    Args:
      embedding_table: the language model's input embeddings.
      padded_ids: int32 token ids in 0..V-1.

    Returns:
      float32.
    """
    return jnp.mean(jnp.asarray(embedding_table)[padded_ids].astype(jnp.float32), axis=-2)
