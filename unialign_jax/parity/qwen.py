"""Qwen2.5-VL's vision tower, its image processing, and the semantic targets made with it.

Parts of the groups `components` and `preprocess`; files that an inventory leaves out are not
compared.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unialign_jax.convert import qwen_names
from unialign_jax.models.teachers import qwen_images
from unialign_jax.models.teachers.qwen_layout import QwenVisionConfig, layout
from unialign_jax.models.teachers.qwen_vision import QwenVision
from unialign_jax.parity.golden import STRICT, GoldenDirectory, GoldenFile, compare

CONFIG = "components/qwen_vision/config.json"
WEIGHTS = "components/qwen_vision/model.safetensors"
TOWER_CASES = "components/qwen_vision_io.npz"
PATCH_CASES = "preprocess/qwen_patches.npz"
TARGETS = "preprocess/semantic_targets.npz"
INDEX = "preprocess/index.json"


def _network(goldens: GoldenDirectory) -> tuple[QwenVisionConfig, Any, Any]:
    """Config, parameters and the function from parameters to the tower."""
    config = qwen_names.qwen_vision_config_from_json(goldens.json(CONFIG))
    params = qwen_names.qwen_vision_from_torch(goldens.open(WEIGHTS).all(), config)
    return config, params, qwen_names.build(config).bind


def _cases(file: GoldenFile, suffix: str) -> list[str]:
    return sorted(key.removesuffix(suffix) for key in file.arrays if key.endswith(suffix))


def verify_tower(goldens: GoldenDirectory) -> None:
    """Compares outputs, the state after every block, patches, windows and angles of all cases."""
    if not goldens.lists(CONFIG, WEIGHTS, TOWER_CASES):
        return
    config, params, bind = _network(goldens)
    file = goldens.open(TOWER_CASES)
    for case in _cases(file, "_grid_thw"):
        grid = file.get(f"{case}_grid_thw")
        # Stored times four, so that int8 holds them exactly.
        patches = jnp.asarray(file.get(f"{case}_pixel_values_x4"), jnp.float32) / 4

        def values(params: Any, patches: Any, grid: Any = grid) -> dict[str, Any]:
            tower: QwenVision = bind(params)
            return {
                "patch_embed": tower.patch(patches),
                "blocks_windowed_order": tower.block_states(patches[None], grid)[:, 0],
                "out": tower(patches, grid),
            }

        arrangement = layout(grid, config)
        file.check(f"{case}_window_index", arrangement.order)
        file.check(f"{case}_cu_window_seqlens_raw", arrangement.window_ends)
        file.check(f"{case}_rotary", arrangement.angles)
        for key, value in jax.jit(values)(params, patches).items():
            file.check(f"{case}_{key}", value)


def verify_patches(goldens: GoldenDirectory) -> None:
    """Compares sizes, grids and patches of images, and the constants of the normalisation."""
    if goldens.lists(INDEX):
        _verify_index(goldens, goldens.json(INDEX))
    if not goldens.lists(PATCH_CASES):
        return
    file = goldens.open(PATCH_CASES)
    for case in _cases(file, "_image_u8"):
        image = jnp.moveaxis(jnp.asarray(file.get(f"{case}_image_u8"), jnp.float32), 0, -1) / 255
        file.check(f"{case}_pixel_values", jax.jit(lambda x: qwen_images.patches(x)[0])(image))
        height, width, _ = image.shape
        file.check(f"{case}_grid_thw", np.array(qwen_images.patch_grid(height, width)))


def _verify_index(goldens: GoldenDirectory, index: dict[str, Any]) -> None:
    case = INDEX.removesuffix(".json")

    def check(tensor: str, value: Any, tolerance: float = 0.0) -> None:
        expected = index
        for key in tensor.split("."):
            expected = expected[key]
        goldens.add(compare(case, tensor, np.array(value), np.array(expected), tolerance))

    check("image_mean", qwen_images.IMAGE_MEAN, STRICT)
    check("image_std", qwen_images.IMAGE_STD, STRICT)
    for size in index["smart_resize_factor28"]:
        height, width = (int(n) for n in size.split("x"))
        check(f"smart_resize_factor28.{size}", qwen_images.smart_resize(height, width, 28))
    for name, entry in index["qwen_patches"].items():
        check(f"qwen_patches.{name}.grid", qwen_images.patch_grid(*entry["hw"]))


def verify_semantic_targets(goldens: GoldenDirectory) -> None:
    """Compares the features of images, with the golden tower, and of texts."""
    if not goldens.lists(TARGETS):
        return
    file = goldens.open(TARGETS)
    file.check(
        "text_features",
        qwen_images.text_features(file.get("embedding_table"), file.get("token_ids_padded")),
    )
    if not goldens.lists(CONFIG, WEIGHTS):
        return
    _, params, bind = _network(goldens)
    images = jnp.moveaxis(jnp.asarray(file.get("images")), 1, -1)
    features = jax.jit(lambda p, x: qwen_images.image_features(bind(p), x))(params, images)
    file.check("image_features", features)
