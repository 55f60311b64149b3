"""Encoded images to pixels and back, cut and scaled exactly as the reference does it."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from unialign_jax.data.tasks import BadItem

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8

# Formats that Pillow reads by itself; others may start outside programs (EPS) or are exotic.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 1 << 26
STORED_FORMATS = ("PNG", "JPEG")

_DECODE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error)


def open_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Reads an image's header and refuses image bombs before any pixel is decoded.

    Args:
        data: an encoded image in one of `FORMATS`.
        max_pixels: largest height times width.

    Raises:
        BadItem: "undecodable" (not an image that is read here), "too_large" (over the limit).
    """
    try:
        with warnings.catch_warnings():
            # Pillow's own limit is a warning first; ours below is always an error.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadItem("too_large", str(error)) from error
    except _DECODE_ERRORS as error:
        what = "empty file" if not data else "not a readable image"
        raise BadItem("undecodable", f"{what} ({', '.join(FORMATS)} are read)") from error
    width, height = image.size
    if width * height > max_pixels:
        raise BadItem("too_large", f"{width}x{height} pixels, the limit is {max_pixels} in all")
    return image


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes to RGB. Alpha is dropped and the EXIF orientation ignored, as in the reference.

    Raises:
        BadItem: "undecodable" or "too_large".
    """
    image = open_image(data, max_pixels)
    try:
        return image.convert("RGB")
    except _DECODE_ERRORS as error:
        raise BadItem("undecodable", f"damaged image: {error}") from error


def resize_shorter(image: Image.Image, size: int) -> Image.Image:
    """Scales the shorter side to `size` (bicubic, antialiased); the long side is truncated.

    Raises:
        BadItem: "too_large" where a thread of an image would grow beyond `MAX_PIXELS`.
    """
    width, height = image.size
    if width <= height:
        new = (size, int(size * height / width))
    else:
        new = (int(size * width / height), size)
    if new == image.size:
        return image
    if new[0] * new[1] > MAX_PIXELS:
        raise BadItem("too_large", f"{width}x{height} would become {new[0]}x{new[1]} pixels")
    return image.resize(new, Image.Resampling.BICUBIC)


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Cuts the middle `size` x `size`; a half pixel of offset is rounded to even."""
    width, height = image.size
    left, top = round((width - size) / 2.0), round((height - size) / 2.0)
    return image.crop((left, top, left + size, top + size))


def to_pixels(image: Image.Image, size: int) -> UInt8[np.ndarray, "R R 3"]:
    """An RGB image to the square that the model sees (uint8; source: reference, section 2.8)."""
    return np.asarray(center_crop(resize_shorter(image, size), size), dtype=np.uint8)


def to_float(pixels: UInt8[np.ndarray, "*B H W 3"]) -> Float[np.ndarray, "*B H W 3"]:
    """uint8 pixels to float32 in [-1, 1], rounded as the reference rounds."""
    return (pixels.astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)


def from_float(values: Float[np.ndarray, "*B H W 3"]) -> UInt8[np.ndarray, "*B H W 3"]:
    """Float pixels in [-1, 1] (clipped) to uint8, the inverse of `to_float`."""
    scaled = (np.asarray(values, np.float32) + np.float32(1)) * np.float32(127.5)
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def encode(image: Image.Image | np.ndarray, encoding: str = "png", quality: int = 95) -> bytes:
    """Encodes an RGB image or uint8 [H, W, 3] array as "png" (exact) or "jpeg" (4:4:4)."""
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    out = io.BytesIO()
    if encoding == "png":
        image.save(out, "PNG", compress_level=6)
    elif encoding == "jpeg":
        image.save(out, "JPEG", quality=quality, subsampling=0)
    else:
        raise ValueError(f"encoding {encoding!r}: png or jpeg")
    return out.getvalue()


def to_stored(
    data: bytes, size: int | None = None, encoding: str = "png", max_pixels: int = MAX_PIXELS
) -> tuple[bytes, int, int]:
    """Checks an image by decoding it fully and returns the bytes that a record keeps.

    RGB images in PNG or JPEG keep their bytes; anything else becomes an RGB PNG, so that every
    reader of the data set gets three channels. With `size`, an image whose shorter side is
    larger is scaled down to it first. A PNG so stored gives the same pixels at
    `data.image_size = size` as the original would.

    Returns:
        (encoded bytes, height, width).

    Raises:
        BadItem: "undecodable" or "too_large".
    """
    header = open_image(data, max_pixels)
    keep = header.format in STORED_FORMATS and header.mode == "RGB"
    image = decode(data, max_pixels)
    if size is not None and min(image.size) > size:
        image = resize_shorter(image, size)
        data = encode(image, encoding)
    elif not keep:
        data = encode(image, "png")
    return data, image.height, image.width
