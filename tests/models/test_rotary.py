"""Rotary embeddings of image tokens: against transformers, closed forms, and inside the network."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.test_switches import SMALL, branch, network, run
from unialign_jax.models import rotary

K = 8


def heads(seed: int, tokens: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2, tokens, 3, K)).astype(np.float32)


def test_turning_is_that_of_transformers_llama():
    torch = pytest.importorskip("torch")
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    cosines, sines = rotary.rotation_table(3, 2, K, fastest=2.0, slowest=0.3)
    q, k = heads(0, 6), heads(1, 6)
    both = [torch.from_numpy(np.tile(part, (1, 2)))[None] for part in (cosines, sines)]
    theirs = llama.apply_rotary_pos_emb(
        *(torch.from_numpy(x).transpose(1, 2) for x in (q, k)), *both
    )
    for ours, other in zip((q, k), theirs, strict=True):
        turned = rotary.rotate(jnp.asarray(ours), jnp.asarray(cosines), jnp.asarray(sines))
        np.testing.assert_allclose(turned, other.transpose(1, 2).numpy(), atol=1e-6)


def test_roformers_frequencies_are_a_case_of_ours():
    count = 16
    ours = rotary.frequencies(count, 1.0, 10000.0 ** (-(count - 1) / count))
    np.testing.assert_allclose(ours, 10000.0 ** (-np.arange(count) / count), rtol=1e-12)
    assert rotary.frequencies(1, 3.0, 0.5).tolist() == [3.0]


def test_products_depend_only_on_how_far_apart_two_patches_lie():
    rows, columns = 4, 5
    cosines, sines = rotary.rotation_table(rows, columns, K, fastest=3.0, slowest=0.4)
    q, k = (np.tile(heads(seed, 1)[:, :, :1], (1, rows * columns, 1, 1)) for seed in (0, 1))
    q, k = (rotary.rotate(jnp.asarray(x), cosines, sines)[0, :, 0] for x in (q, k))
    products = np.asarray(q @ k.T).reshape(rows, columns, rows, columns)
    for down in range(-2, 3):
        for right in range(-2, 3):
            found = [
                products[r, c, r + down, c + right]
                for r in range(rows)
                for c in range(columns)
                if 0 <= r + down < rows and 0 <= c + right < columns
            ]
            np.testing.assert_allclose(found, found[0], atol=1e-4)
    assert np.ptp(products[0, 0]) > 1


def test_row_and_column_turn_different_channels_by_exact_angles():
    cosines, sines = rotary.rotation_table(2, 3, K, fastest=1.0, slowest=0.25)
    angles = np.array(
        [[r * 1.0, r * 0.25, c * 1.0, c * 0.25] for r in range(2) for c in range(3)], np.float64
    )
    np.testing.assert_allclose(cosines, np.cos(angles), atol=1e-7)
    np.testing.assert_allclose(sines, np.sin(angles), atol=1e-7)


def test_the_angles_of_a_condition_are_those_of_the_target():
    functional, _ = network(rotary_fastest=3.0, rotary_slowest=0.4)
    model = functional.bind(functional.init(jax.random.key(0)))
    inputs = branch()
    cosines, _ = model._rotations(inputs)
    count = SMALL.sample_size**2 // SMALL.patch_size**2
    assert cosines.shape == (2 * count, SMALL.width // SMALL.heads // 2)
    np.testing.assert_array_equal(cosines[:count], cosines[count:])
    assert model._rotations(dataclasses.replace(inputs, latents=None, conditions=())) is None


def test_it_changes_what_the_weights_mean_and_adds_none():
    turned, params = network(rotary_fastest=3.0, rotary_slowest=0.4)
    plain, others = network()
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, others)
    first, second = (run(f, params, branch()).velocity for f in (turned, plain))
    assert not np.allclose(first, second, atol=1e-2)


def test_unrolled_blocks_turn_by_the_same_angles():
    functional, params = network(rotary_fastest=3.0, rotary_slowest=0.4)
    unrolled, _ = network(rotary_fastest=3.0, rotary_slowest=0.4, unroll=True)
    np.testing.assert_allclose(
        run(functional, params, branch()).velocity,
        run(unrolled, params, branch()).velocity,
        atol=1e-4,
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rotary_fastest": -1.0}, "above 0"),
        ({"rotary_fastest": 1.0, "rotary_slowest": 0.0}, "above 0"),
        ({"rotary_fastest": 1.0, "width": 12, "heads": 2}, "4 divides"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **fields)
