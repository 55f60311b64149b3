"""Pixels equal the reference's; bombs and damage are refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unialign_jax.data import images
from unialign_jax.data.tasks import BadItem

CASES = [(f"im{k}", size) for k in range(6) for size in (24, 32)]


@pytest.fixture(scope="module")
def golden(repository):
    with np.load(repository / "tests/goldens/preprocess/pil_to_tensor.npz") as file:
        return dict(file)


@pytest.mark.parametrize(("name", "size"), CASES)
def test_pixels_equal_the_reference_exactly(golden, name, size):
    data = images.encode(Image.fromarray(golden[f"{name}_input"]), "png")
    pixels = images.to_float(images.to_pixels(images.decode(data), size))
    expected = golden[f"{name}_R{size}"][0].transpose(1, 2, 0)
    np.testing.assert_array_equal(pixels, expected)


def test_floats_return_to_the_same_pixels():
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)
    np.testing.assert_array_equal(images.from_float(images.to_float(pixels)), pixels)


def test_floats_outside_the_range_are_clipped():
    values = np.array([[[-3.0, 0.0, 3.0]]], np.float32)
    assert images.from_float(values).tolist() == [[[0, 128, 255]]]


@given(height=st.integers(1, 90), width=st.integers(1, 90), size=st.integers(1, 48))
@settings(max_examples=60, deadline=None)
def test_every_image_becomes_a_square(height, width, size):
    image = Image.new("RGB", (width, height), (10, 20, 30))
    pixels = images.to_pixels(image, size)
    assert pixels.shape == (size, size, 3)
    assert pixels.dtype == np.uint8
    assert (pixels == (10, 20, 30)).all()


def test_half_a_pixel_of_crop_offset_is_rounded_to_even():
    ramp = np.zeros((2, 7, 3), np.uint8)
    ramp[:, :, 0] = np.arange(7)
    for width, left in ((7, 2), (5, 2), (3, 0)):  # offsets 2.5, 1.5, 0.5
        image = Image.fromarray(ramp[:, :width])
        assert np.asarray(images.center_crop(image, 2))[0, 0, 0] == left


def test_an_image_with_too_many_pixels_is_refused_before_it_is_decoded(monkeypatch):
    data = images.encode(np.zeros((50, 50, 3), np.uint8))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(BadItem) as caught:
        images.open_image(data, max_pixels=2499)
    assert caught.value.kind == "too_large"
    assert "50x50" in caught.value.reason


def test_a_bomb_beyond_pillows_own_limit_is_refused():
    # A header that promises 2 000 000 x 2 000 000 pixels.
    bomb = bytearray(images.encode(np.zeros((1, 1, 3), np.uint8)))
    bomb[16:24] = (2_000_000).to_bytes(4, "big") * 2
    import zlib

    bomb[29:33] = zlib.crc32(bytes(bomb[12:29])).to_bytes(4, "big")
    with pytest.raises(BadItem) as caught:
        images.decode(bytes(bomb))
    assert caught.value.kind == "too_large"


def test_a_thread_of_an_image_may_not_grow_without_bound():
    with pytest.raises(BadItem) as caught:
        images.to_pixels(Image.new("RGB", (60_000, 1)), 64)
    assert caught.value.kind == "too_large"


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped"])
def test_damaged_images_are_undecodable(picture, damage):
    data = picture(form="JPEG", height=64, width=64)
    data = {
        "empty": b"",
        "text": b"not an image at all",
        "cut": data[: len(data) // 2],
        "flipped": b"\x89PNG\r\n\x1a\n" + data[8:],
    }[damage]
    with pytest.raises(BadItem) as caught:
        images.decode(data)
    assert caught.value.kind == "undecodable"


def test_formats_that_start_other_programs_are_not_read():
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"
    with pytest.raises(BadItem, match="undecodable"):
        images.open_image(eps)


def test_the_exif_orientation_is_ignored_as_in_the_reference():
    image = Image.new("RGB", (4, 2))
    exif = image.getexif()
    exif[0x0112] = 6
    out = io.BytesIO()
    image.save(out, "JPEG", exif=exif)
    assert images.decode(out.getvalue()).size == (4, 2)


def test_rgb_png_and_jpeg_keep_their_bytes(picture):
    for form in ("PNG", "JPEG"):
        data = picture(form=form)
        assert images.to_stored(data) == (data, 20, 26)
        assert images.to_stored(data, size=20) == (data, 20, 26)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16"])
def test_other_modes_are_stored_as_rgb_png_with_the_same_pixels(mode):
    image = Image.new("RGB", (6, 5), (200, 30, 90)).convert("L" if mode == "I;16" else mode)
    image = image.convert("I").convert(mode) if mode == "I;16" else image
    out = io.BytesIO()
    image.save(out, "TIFF" if mode == "CMYK" else "PNG")
    data, height, width = images.to_stored(out.getvalue())
    stored = Image.open(io.BytesIO(data))
    assert (stored.format, stored.mode, height, width) == ("PNG", "RGB", 5, 6)
    np.testing.assert_array_equal(stored, images.decode(out.getvalue()))


def test_an_image_stored_smaller_gives_the_pixels_of_the_original(picture):
    data = picture(height=60, width=83)
    small, height, width = images.to_stored(data, size=32)
    assert (height, width) == (32, 44)
    np.testing.assert_array_equal(
        images.to_pixels(images.decode(small), 32), images.to_pixels(images.decode(data), 32)
    )


def test_an_unknown_encoding_is_an_error():
    with pytest.raises(ValueError, match="gif"):
        images.encode(np.zeros((2, 2, 3), np.uint8), "gif")
