"""Pictures to what SigLIP's image tower takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8
    from PIL import Image


def to_siglip(
    image: Image.Image | UInt8[np.ndarray, "H W 3"], image_size: int
) -> Float[np.ndarray, "S S 3"]:
    """Scales a picture to a square, whatever its shape, and its pixels to [-1, 1].

    Bicubic with antialiasing, on uint8 pixels; then (x / 255 - 0.5) / 0.5, the numbers of the
    published checkpoints' preprocessor_config.json. Alpha is dropped, as everywhere here
    (transformers from 5 on lays such pictures on white).

    Args:
      image: a PIL image of any mode, or uint8 pixels.
      image_size: S, `SigLIPConfig.vision.image_size`.

    Returns:
      float32.

    Raises:
      ValueError: an array that is not uint8 [H, W, 3].
    """
    from PIL import Image

    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"an array of {image.dtype} {image.shape}: give uint8 (H, W, 3)")
        image = Image.fromarray(image)
    square = image.convert("RGB").resize((image_size, image_size), Image.Resampling.BICUBIC)
    unit = np.asarray(square).astype(np.float32) / np.float32(255)
    return (unit - np.float32(0.5)) / np.float32(0.5)
