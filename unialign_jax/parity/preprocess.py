"""Group `preprocess`: pictures to the pixels that the networks see."""

from __future__ import annotations

import numpy as np
from PIL import Image

from unialign_jax.data import images
from unialign_jax.parity import qwen
from unialign_jax.parity.golden import GoldenDirectory, compare

GROUP = "preprocess"
PICTURES = f"{GROUP}/pil_to_tensor.npz"


def verify(goldens: GoldenDirectory) -> None:
    """Compares pixels, patches of the vision teacher, and the targets of the alignment losses."""
    if goldens.lists(PICTURES):
        _verify_pictures(goldens)
    qwen.verify_patches(goldens)
    qwen.verify_semantic_targets(goldens)


def _verify_pictures(goldens: GoldenDirectory) -> None:
    file = goldens.open(PICTURES)
    index = goldens.json(f"{GROUP}/index.json")["pil_to_tensor"]
    for name, facts in index.items():
        picture = Image.fromarray(file.get(f"{name}_input"))
        for key, ours in (("mode", picture.mode), ("hw", list(picture.size[::-1]))):
            same = np.array_equal(ours, facts[key])
            goldens.add(
                compare(file.case, f"index.{name}.{key}", np.array(same), np.array(True), 0)
            )
        rgb = images.decode(images.encode(picture))
        for key in [key for key in file.arrays if key.startswith(f"{name}_R")]:
            pixels = images.to_pixels(rgb, int(key.removeprefix(f"{name}_R")))
            file.check(key, images.to_float(pixels).transpose(2, 0, 1)[None], 1e-7)
