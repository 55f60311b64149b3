"""The gradient of a bias as a product with ones is the sum, and is chosen for TPUs only."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unialign_jax.models.bias import plus_bias, summed_by_product


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_and_gradients_are_those_of_a_sum_in_float64(dtype):
    rng = np.random.default_rng(0)
    y, d_y = (jnp.asarray(rng.normal(size=(3, 40, 4, 8)), dtype) for _ in range(2))
    bias = jnp.asarray(rng.normal(size=(4, 8)), dtype)
    value, gradient = jax.vjp(summed_by_product, y, bias)
    np.testing.assert_array_equal(value, y + bias)
    of_y, of_bias = gradient(d_y)
    np.testing.assert_array_equal(of_y, d_y)
    assert of_bias.dtype == bias.dtype
    truth = np.asarray(d_y, np.float64).sum((0, 1))
    rounding = 1e-6 if dtype == "float32" else 2**-8
    np.testing.assert_allclose(np.asarray(of_bias, np.float64), truth, rtol=rounding, atol=1e-5)


def gradient_program():
    shapes = jax.ShapeDtypeStruct((2, 16, 4, 8), "float32"), jax.ShapeDtypeStruct((4, 8), "float32")
    return str(jax.make_jaxpr(jax.grad(lambda y, b: plus_bias(y, b).sum(), argnums=1))(*shapes))


def test_only_a_tpu_gets_the_product(monkeypatch):
    assert "dot_general" not in gradient_program()
    monkeypatch.setattr("unialign_jax.models.bias.traced_platform", lambda: "tpu")
    assert "dot_general" in gradient_program()
