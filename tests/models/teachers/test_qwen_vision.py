"""Qwen2.5-VL's vision tower against the reference's recorded numbers and transformers itself."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from unialign_jax.convert.qwen_names import (
    build,
    qwen_vision_config_from_json,
    qwen_vision_from_torch,
    qwen_vision_to_torch,
)
from unialign_jax.models.teachers.qwen_vision import QwenVisionConfig, layout

COMPONENTS = pathlib.Path(__file__).parents[2] / "goldens" / "components"
CASES = ("grid0", "grid1", "multi")
TINY = QwenVisionConfig(
    depth=2, width=16, heads=2, mlp_width=24, out_width=12, patch_size=4, window=16,
    full_blocks=(1,),
)  # fmt: skip


def random_params(config: QwenVisionConfig, seed: int):
    """Parameters under which every part of the tower counts."""
    rng = np.random.default_rng(seed)
    scale = lambda leaf: 0.5 * np.sqrt(1 / leaf.shape[1 if leaf.ndim > 2 else 0])
    draw = lambda leaf: (scale(leaf) * rng.normal(size=leaf.shape)).astype(leaf.dtype)
    return jax.tree.map(draw, build(config).abstract)


def random_patches(config: QwenVisionConfig, grid, seed: int) -> np.ndarray:
    count = sum(t * h * w for t, h, w in grid)
    return np.random.default_rng(seed).normal(size=(count, config.patch_channels)).astype("f")


def encode(params, config: QwenVisionConfig, patches, grid):
    run = jax.jit(lambda params, patches: build(config).bind(params)(patches, grid))
    return run(params, jnp.asarray(patches))


def block_states(params, config: QwenVisionConfig, patches, grid):
    run = jax.jit(lambda p, x: build(config).bind(p).block_states(x[None], grid)[:, 0])
    return run(params, jnp.asarray(patches))


def assert_close(actual, expected, tolerance=1e-5):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.max(np.abs(actual - expected)) <= tolerance * np.max(np.abs(expected))


class Golden:
    def __init__(self):
        folder = COMPONENTS / "qwen_vision"
        self.config = qwen_vision_config_from_json(json.loads((folder / "config.json").read_text()))
        state = load_file(folder / "model.safetensors")
        self.params = qwen_vision_from_torch(state, self.config)
        self.io = dict(np.load(COMPONENTS / "qwen_vision_io.npz"))

    def inputs(self, case: str):
        return self.io[f"{case}_pixel_values_x4"].astype("f") / 4, self.io[f"{case}_grid_thw"]


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden()


@pytest.mark.parametrize("case", CASES)
def test_output_equals_the_reference(golden, case):
    out = encode(golden.params, golden.config, *golden.inputs(case))
    assert_close(out, golden.io[f"{case}_out"])


@pytest.mark.parametrize("case", CASES)
def test_state_after_every_block_equals_the_reference(golden, case):
    states = block_states(golden.params, golden.config, *golden.inputs(case))
    assert_close(states, golden.io[f"{case}_blocks_windowed_order"])


@pytest.mark.parametrize("case", CASES)
def test_embedded_patches_equal_the_reference(golden, case):
    tower = build(golden.config).bind(golden.params)
    assert_close(tower.patch(golden.inputs(case)[0]), golden.io[f"{case}_patch_embed"])


@pytest.mark.parametrize("case", CASES)
def test_windows_and_angles_equal_the_reference(golden, case):
    found = layout(golden.inputs(case)[1], golden.config)
    np.testing.assert_array_equal(found.order, golden.io[f"{case}_window_index"])
    np.testing.assert_array_equal(found.window_ends, golden.io[f"{case}_cu_window_seqlens_raw"])
    assert_close(found.angles, golden.io[f"{case}_rotary"])


# Sizes in transformers' names, and grids: sides that windows do not divide, several images, a
# video, tokens of 3 x 3 patches, an image smaller than a window.
LIVE = {
    "windows_of_three": (
        {"depth": 3, "hidden_size": 24, "num_heads": 3, "intermediate_size": 40,
         "out_hidden_size": 20, "patch_size": 6, "window_size": 36, "fullatt_block_indexes": [1]},
        ((1, 8, 14), (1, 4, 2)),
    ),
    "published_patches": (
        {"depth": 2, "hidden_size": 64, "num_heads": 2, "intermediate_size": 100,
         "out_hidden_size": 33, "window_size": 112, "fullatt_block_indexes": [0, 7]},
        ((1, 18, 10),),
    ),
    "video": (
        {"depth": 2, "hidden_size": 16, "num_heads": 4, "intermediate_size": 24,
         "out_hidden_size": 8, "patch_size": 4, "window_size": 16, "fullatt_block_indexes": [1]},
        ((2, 4, 6), (1, 2, 10), (3, 6, 2)),
    ),
    "tokens_of_nine_patches": (
        {"depth": 3, "hidden_size": 24, "num_heads": 2, "intermediate_size": 30,
         "out_hidden_size": 16, "patch_size": 3, "window_size": 20, "spatial_merge_size": 3,
         "temporal_patch_size": 1, "fullatt_block_indexes": [2]},
        ((1, 12, 15), (1, 3, 3)),
    ),
}  # fmt: skip


def torch_tower(sizes, seed: int = 0):
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    theirs = pytest.importorskip("transformers.models.qwen2_5_vl.modeling_qwen2_5_vl")
    settings = pytest.importorskip("transformers.models.qwen2_5_vl.configuration_qwen2_5_vl")
    torch.manual_seed(seed)
    config = settings.Qwen2_5_VLVisionConfig(**sizes)
    model = theirs.Qwen2_5_VisionTransformerPretrainedModel(config).eval()
    for name, parameter in model.named_parameters():
        noise = torch.randn_like(parameter)
        if parameter.dim() > 1:
            parameter.data = noise * parameter[0].numel() ** -0.5
        else:  # norms start at one, biases at zero: make all count
            parameter.data = 0.2 * noise + (0.0 if name.endswith("bias") else 1.0)
    state = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    return torch, model, qwen_vision_config_from_json(config.to_dict()), state


def run_torch(torch, model, patches, grid):
    """Tokens, and the last state in the order of windows where this version returns it."""
    with torch.no_grad():
        out = model(torch.from_numpy(patches), grid_thw=torch.tensor(grid))
    if isinstance(out, torch.Tensor):
        return out.numpy(), None
    return out.pooler_output.numpy(), out.last_hidden_state.numpy()


@pytest.mark.parametrize("case", LIVE)
def test_output_equals_transformers_at_other_sizes(case):
    sizes, grid = LIVE[case]
    torch, model, config, state = torch_tower(sizes)
    patches = random_patches(config, grid, 1)
    expected, last_state = run_torch(torch, model, patches, grid)
    params = qwen_vision_from_torch(state, config)
    assert_close(encode(params, config, patches, grid), expected)
    if last_state is not None:
        assert_close(block_states(params, config, patches, grid)[-1], last_state)


def test_exported_weights_run_in_transformers():
    sizes, grid = LIVE["video"]
    torch, model, config, _ = torch_tower(sizes)
    params = random_params(config, 2)
    state = qwen_vision_to_torch(params, config)
    model.load_state_dict({name: torch.from_numpy(a.copy()) for name, a in state.items()})
    patches = random_patches(config, grid, 3)
    expected, _ = run_torch(torch, model, patches, grid)
    assert_close(encode(params, config, patches, grid), expected)


def test_images_of_a_row_do_not_see_each_other():
    params, grid = random_params(TINY, 0), ((1, 4, 6), (1, 6, 2), (2, 2, 4))
    patches = random_patches(TINY, grid, 1)
    together = encode(params, TINY, patches, grid)
    changed = patches.copy()
    changed[24:36] += 1
    other = encode(params, TINY, changed, grid)
    np.testing.assert_array_equal(together[:6], other[:6])
    np.testing.assert_array_equal(together[9:], other[9:])
    assert np.all(np.any(together[6:9] != other[6:9], axis=-1)), "the image sees all of itself"
    assert_close(together[:6], encode(params, TINY, patches[:24], grid[:1]))


def test_blocks_without_the_whole_image_stay_within_windows():
    config = dataclasses.replace(TINY, full_blocks=())
    params, grid = random_params(config, 0), ((1, 6, 10),)
    patches = random_patches(config, grid, 1)
    changed = patches.copy()
    changed[0] += 1
    difference = encode(params, config, patches, grid) != encode(params, config, changed, grid)
    touched = np.any(difference, axis=-1).reshape(3, 5)
    assert touched[:2, :2].all() and touched.sum() == 4


def test_a_batch_of_rows_equals_the_rows_alone():
    params, grid = random_params(TINY, 0), ((1, 6, 4),)
    rows = np.stack([random_patches(TINY, grid, seed) for seed in range(3)])
    batch = encode(params, TINY, rows, grid)
    assert batch.shape == (3, 6, TINY.out_width)
    for i in range(3):
        assert_close(batch[i], encode(params, TINY, rows[i], grid))


def test_the_grid_may_be_an_array():
    params, grid = random_params(TINY, 0), ((1, 4, 4), (1, 2, 6))
    patches = random_patches(TINY, grid, 1)
    np.testing.assert_array_equal(
        encode(params, TINY, patches, np.array(grid)), encode(params, TINY, patches, grid)
    )


def test_bfloat16_compute_keeps_float32_parameters_and_stays_near_float32():
    params, grid = random_params(TINY, 2), ((1, 6, 10),)
    patches = random_patches(TINY, grid, 1)
    half = dataclasses.replace(TINY, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(build(half).abstract)} == {jnp.dtype("float32")}
    out = encode(params, half, patches, grid)
    assert out.dtype == jnp.bfloat16
    assert_close(out.astype(jnp.float32), encode(params, TINY, patches, grid), tolerance=0.04)


def test_parameters_can_be_created_in_bfloat16():
    config = dataclasses.replace(TINY, param_dtype="bfloat16", dtype="bfloat16")
    params = jax.jit(build(config).init)(jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    kernels = params["blocks"]["up"]["kernel"]
    assert not np.array_equal(kernels[0], kernels[1]), "blocks must differ"


def test_every_parameter_names_its_logical_axes_without_the_layer_axis():
    tower = build(TINY)
    known = {"embed", "heads", "kv", "mlp", None}
    axes = jax.tree.leaves_with_path(tower.axes, is_leaf=lambda node: isinstance(node, tuple))
    leaves = jax.tree.leaves_with_path(tower.abstract)
    for (path, names), (same_path, leaf) in zip(axes, leaves, strict=True):
        assert path == same_path
        assert set(names) <= known, path
        assert len(names) == leaf.ndim - (path[0].key == "blocks"), path


def test_compiled_size_does_not_grow_with_depth():
    def lines(depth):
        tower = build(dataclasses.replace(TINY, depth=depth))
        run = jax.jit(lambda params, patches: tower.bind(params)(patches, ((1, 4, 4),)))
        patches = jax.ShapeDtypeStruct((16, TINY.patch_channels), jnp.float32)
        return len(run.lower(tower.abstract, patches).as_text().splitlines())

    assert lines(2) == lines(9)


@pytest.mark.parametrize(
    ("count", "grid", "named"),
    [
        (24, ((1, 4, 4),), r"patches are \(1, 24, 96\), the grid needs \(batch, 16, 96\)"),
        (15, ((1, 5, 3),), r"the grid has \(1, 5, 3\).*multiples of 2"),
        (16, ((4, 4),), r"the grid has \(4, 4\)"),
        (16, ((1, 0, 4),), r"the grid has \(1, 0, 4\)"),
        (16, (), "the grid is empty"),
    ],
)
def test_a_grid_that_does_not_fit_is_refused(count, grid, named):
    tower = build(TINY)
    patches = jax.ShapeDtypeStruct((count, TINY.patch_channels), jnp.float32)
    with pytest.raises(ValueError, match=named):
        jax.eval_shape(lambda params, x: tower.bind(params)(x, grid), tower.abstract, patches)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"heads": 3}, "width 16 is not a multiple of 4 x 3 heads"),
        ({"window": 7}, "window is 7 pixels"),
        ({"depth": 0}, "depth is 0"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
    ],
)
def test_sizes_that_do_not_fit_each_other_are_refused(change, named):
    with pytest.raises(ValueError, match=named):
        dataclasses.replace(TINY, **change)
