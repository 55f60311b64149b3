"""Pixels as latents."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from unialign_jax.models import pixels


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_pixels_span_minus_scale_to_scale_and_come_back(scale: float) -> None:
    image = jnp.arange(256, dtype=jnp.uint8).reshape(1, 16, 16)
    latents = pixels.encode(image, scale)
    assert float(latents.min()) == -scale and float(latents.max()) == scale
    np.testing.assert_allclose(latents.reshape(-1)[51], -0.6 * scale, atol=1e-6)
    np.testing.assert_array_equal(pixels.decode(latents, scale), image)


def test_latents_stay_and_what_is_beyond_the_range_is_clipped() -> None:
    latents = jnp.array([-3.0, 300.0])
    np.testing.assert_array_equal(pixels.encode(latents, 2.0), latents)
    np.testing.assert_array_equal(pixels.decode(latents, 2.0), [0, 255])
