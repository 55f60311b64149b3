"""Images as Qwen2.5-VL sees them, the semantic targets, and what `unialign verify` says of both."""

from __future__ import annotations

import json
import math
import pathlib
import shutil

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from safetensors.numpy import load_file

from tests.parity import copies
from unialign_jax.convert.qwen_names import (
    build,
    qwen_vision_config_from_json,
    qwen_vision_from_torch,
)
from unialign_jax.models.teachers import qwen_images
from unialign_jax.models.teachers.qwen_layout import QwenVisionConfig
from unialign_jax.parity import qwen
from unialign_jax.parity.golden import GoldenDirectory

GOLDENS = pathlib.Path(__file__).parents[2] / "goldens"
INDEX = json.loads((GOLDENS / "preprocess" / "index.json").read_text())
MEAN, STD = np.array(INDEX["image_mean"]), np.array(INDEX["image_std"])


def patches_of(image, config: QwenVisionConfig | None = None):
    """The patches, compiled, and the grid."""
    grids = []

    def run(image):
        out, grid = qwen_images.patches(image, *([config] if config else []))
        grids.append(grid)
        return out

    return np.asarray(jax.jit(run)(jnp.asarray(image))), grids[0]


def assert_close(actual, expected, tolerance=1e-5):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.max(np.abs(actual - expected)) <= tolerance * np.max(np.abs(expected))


@pytest.fixture(scope="module")
def tower():
    folder = GOLDENS / "components" / "qwen_vision"
    config = qwen_vision_config_from_json(json.loads((folder / "config.json").read_text()))
    params = qwen_vision_from_torch(load_file(folder / "model.safetensors"), config)
    return build(config).bind(params)


@pytest.fixture(scope="module")
def targets():
    return dict(np.load(GOLDENS / "preprocess" / "semantic_targets.npz"))


@pytest.mark.parametrize("case", INDEX["qwen_patches"])
def test_patches_and_grid_equal_the_reference(case):
    io = np.load(GOLDENS / "preprocess" / "qwen_patches.npz")
    image = np.moveaxis(io[f"{case}_image_u8"], 0, -1).astype(np.float32) / 255
    patches, grid = patches_of(image)
    assert_close(patches, io[f"{case}_pixel_values"])
    np.testing.assert_array_equal(grid, io[f"{case}_grid_thw"])


@pytest.mark.parametrize("size", INDEX["smart_resize_factor28"])
def test_sizes_equal_the_reference(size):
    height, width = (int(n) for n in size.split("x"))
    expected = tuple(INDEX["smart_resize_factor28"][size])
    assert qwen_images.smart_resize(height, width) == expected
    rows, columns = qwen_images.patch_grid(height, width)[0][1:]
    assert (rows * 14, columns * 14) == expected


def test_the_constants_are_the_reference_s():
    np.testing.assert_array_equal(qwen_images.IMAGE_MEAN, MEAN)
    np.testing.assert_array_equal(qwen_images.IMAGE_STD, STD)


sides = st.integers(1, 6000)


@hypothesis.given(sides, sides, st.sampled_from([4, 28, 56]))
@hypothesis.example(14, 2800, 28)
@hypothesis.example(1, 200, 28)
def test_new_sizes_are_multiples_within_the_bounds(height, width, factor):
    hypothesis.assume(max(height, width) <= 200 * min(height, width))
    new = qwen_images.smart_resize(height, width, factor)
    assert all(side > 0 and side % factor == 0 for side in new)
    assert qwen_images.MIN_PIXELS <= math.prod(new) <= qwen_images.MAX_PIXELS
    assert qwen_images.smart_resize(width, height, factor) == new[::-1]
    assert qwen_images.smart_resize(*new, factor) == new, "already of that size"


@hypothesis.given(sides, sides, st.sampled_from([28, 32]), st.sampled_from([784, 3136, 50000]))
def test_new_sizes_equal_transformers(height, width, factor, minimum):
    processing = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    bounds = {"factor": factor, "min_pixels": minimum, "max_pixels": 20 * minimum}
    try:
        expected = processing.smart_resize(height, width, **bounds)
    except ValueError:
        with pytest.raises(ValueError, match="more than 200 times"):
            qwen_images.smart_resize(height, width, **bounds)
    else:
        assert qwen_images.smart_resize(height, width, **bounds) == expected


# Shrinking, growing, shrinking one side only, keeping the size, a larger picture.
@pytest.mark.parametrize("size", [(64, 90), (30, 41), (200, 60), (56, 84), (300, 200)])
def test_patches_equal_torch_s_antialiased_bicubic(size):
    torch = pytest.importorskip("torch")
    image = np.random.default_rng(size[0]).random((*size, 3)).astype(np.float32)
    new = qwen_images.smart_resize(*size)
    x = torch.from_numpy(image).permute(2, 0, 1)[None]
    x = torch.nn.functional.interpolate(x, new, mode="bicubic", antialias=True)
    x = (x - torch.from_numpy(MEAN[:, None, None])) / torch.from_numpy(STD[:, None, None])
    # Squares of 28 pixels, in each squares of 14, each twice in time: by torch's own unfolding.
    squares = x[0].unfold(1, 28, 28).unfold(2, 28, 28).permute(1, 2, 0, 3, 4)
    squares = squares.unfold(3, 14, 14).unfold(4, 14, 14).permute(0, 1, 3, 4, 2, 5, 6)
    expected = squares[..., None, :, :].repeat(1, 1, 1, 1, 1, 2, 1, 1).reshape(-1, 1176)
    patches, grid = patches_of(image)
    assert grid == ((1, new[0] // 14, new[1] // 14),)
    # In both, positions are float32: at pixel 300 good to 1e-5, which noise turns into as much.
    assert_close(patches, expected.numpy(), 5e-5 if max(size) > 100 else 1e-5)


def test_an_image_of_the_right_size_is_only_cut():
    config = QwenVisionConfig(width=16, heads=2, patch_size=4, merge=3, frames=3, window=12)
    image = np.random.default_rng(0).random((60, 72, 3)).astype(np.float32)
    patches, grid = patches_of(image, config)
    assert grid == ((1, 15, 18),)
    patches = patches.reshape(5, 6, 3, 3, 3, 3, 4, 4)  # token row, column, in it; channel, frame
    pixels = (image - MEAN) / STD
    for at in ((0, 0, 0, 0), (2, 5, 1, 2), (4, 3, 2, 0)):
        top, left = (at[0] * 3 + at[2]) * 4, (at[1] * 3 + at[3]) * 4
        expected = np.moveaxis(pixels[top : top + 4, left : left + 4], -1, 0)
        for frame in range(3):
            assert_close(patches[at][:, frame], expected)


def test_overshoot_of_the_bicubic_filter_is_kept():
    image = np.zeros((30, 30, 3), np.float32)
    image[:15] = 1
    resized = np.asarray(qwen_images.resize(jnp.asarray(image), 56, 56))
    assert resized.max() > 1.01 and resized.min() < -0.01


def test_images_of_a_batch_are_cut_as_alone():
    images = np.random.default_rng(1).random((2, 3, 60, 70, 3)).astype(np.float32)
    together, grid = patches_of(images)
    assert together.shape == (2, 3, 16, 1176) and grid == ((1, 4, 4),)
    assert_close(together[1, 2], patches_of(images[1, 2])[0], 1e-6)


def test_features_of_images_equal_the_reference(tower, targets):
    images = jnp.moveaxis(jnp.asarray(targets["images"]), 1, -1)
    features = jax.jit(lambda x: qwen_images.image_features(tower, x))(images)
    assert features.dtype == jnp.float32
    assert_close(features, targets["image_features"])


def test_features_of_texts_equal_the_reference(targets):
    table, ids = (jnp.asarray(targets[key]) for key in ("embedding_table", "token_ids_padded"))
    features = qwen_images.text_features(table, ids)
    assert_close(features, targets["text_features"])


def test_features_are_the_mean_over_tokens_of_clamped_images(tower):
    images = np.random.default_rng(2).uniform(-1.4, 1.4, (2, 60, 70, 3)).astype(np.float32)
    tokens = jax.jit(lambda x: qwen_images.image_tokens(tower, x))
    features = jax.jit(lambda x: qwen_images.image_features(tower, x))
    expected = np.mean(tokens((np.clip(images, -1, 1) + 1) / 2), axis=1)
    assert expected.shape == (2, tower.config.out_width)
    assert_close(features(images), expected)
    assert_close(features(images[1]), expected[1])


def test_padding_counts_in_the_features_of_texts():
    table = jnp.asarray(np.random.default_rng(3).normal(size=(9, 5)), jnp.float32)
    short = qwen_images.text_features(table, jnp.array([[3, 4]]))
    padded = qwen_images.text_features(table, jnp.array([[3, 4, 0, 0]]))
    assert_close(padded, (short + table[0]) / 2)
    half = qwen_images.text_features(table.astype(jnp.bfloat16), jnp.array([[3, 4]]))
    assert half.dtype == jnp.float32


@pytest.mark.parametrize(
    ("image", "named"),
    [
        (np.zeros((2, 402, 3), np.float32), "2 x 402 pixels: no side may be more than 200 times"),
        (np.zeros((0, 4, 3), np.float32), "0 x 4 pixels: at least 1 x 1"),
        (np.zeros((60, 60, 4), np.float32), r"images are \(60, 60, 4\)"),
        (np.zeros((60, 60), np.float32), r"images are \(60, 60\)"),
        (np.zeros((60, 60, 3), np.uint8), "images are uint8: give floats"),
    ],
)
def test_what_is_no_image_is_refused(image, named):
    with pytest.raises(ValueError, match=named):
        qwen_images.patches(image)


def golden_directory(root: pathlib.Path, *names: str) -> pathlib.Path:
    copies.copy(root, "none of them")
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(GOLDENS / name, root / name)
        copies.enlist(root, name)
    return root


def verify(root: pathlib.Path) -> GoldenDirectory:
    goldens = GoldenDirectory(root)
    qwen.verify_tower(goldens)
    qwen.verify_patches(goldens)
    qwen.verify_semantic_targets(goldens)
    return goldens


EVERY_FILE = (
    qwen.CONFIG,
    qwen.WEIGHTS,
    qwen.TOWER_CASES,
    qwen.PATCH_CASES,
    qwen.TARGETS,
    qwen.INDEX,
)


def test_verify_compares_every_array_of_every_file(tmp_path):
    goldens = verify(golden_directory(tmp_path, *EVERY_FILE))
    assert [row for row in goldens.rows if not row.ok] == []
    assert goldens.unchecked("components") + goldens.unchecked("preprocess") == []
    assert len({row.case for row in goldens.rows}) == 4


def test_verify_passes_over_files_that_are_not_listed(tmp_path):
    goldens = verify(golden_directory(tmp_path, qwen.TARGETS, qwen.TOWER_CASES))
    assert [row.tensor for row in goldens.rows] == ["text_features"]


@pytest.mark.parametrize(
    ("name", "key"),
    [(qwen.PATCH_CASES, "case1_pixel_values"), (qwen.TARGETS, "text_features")],
)
def test_verify_reports_a_changed_number(tmp_path, name, key):
    golden_directory(tmp_path, qwen.PATCH_CASES, qwen.TARGETS)
    copies.change(tmp_path, name, copies.raised(key, 1e-4))
    assert [row.tensor for row in verify(tmp_path).rows if not row.ok] == [key]
