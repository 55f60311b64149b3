"""Where every array of the full model's training state lies, written down.

After a change on purpose: `python -m tests.parallel.test_sharding_dump` writes the files anew.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax
import pytest

from unialign_jax import config as configs
from unialign_jax.planning.batch import setup_for, with_values

GOLDENS = Path(__file__).resolve().parents[1] / "goldens" / "shardings"
MESHES = {
    "data2_fsdp4": {"data": 2, "fsdp": 4, "context": 1, "tensor": 1},
    "data2_fsdp2_tensor2": {"data": 2, "fsdp": 2, "context": 1, "tensor": 2},
}
# Elements of the largest array that may lie whole on every device.
LARGEST_WHOLE = 2**20


def state(mesh: str) -> list[tuple[str, Any]]:
    """Path and abstract array of every leaf of stage 1's state: parameters, moments, average."""
    config = configs.to_plain(configs.load_config("stage1_pretrain"))
    values = {f"mesh.{axis}": size for axis, size in MESHES[mesh].items()}
    setup = setup_for(with_values(config, values | {"train.global_batch": 8}), jax.devices()[:8])
    leaves = jax.tree_util.tree_leaves_with_path(setup.abstract)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def dump(mesh: str) -> str:
    """One line per leaf: path, dtype, shape, and the mesh axes of its dimensions."""
    rows = []
    for path, leaf in state(mesh):
        axes = [str(axis or "-") for axis in leaf.sharding.spec]
        where = " ".join(axes) if any(axis != "-" for axis in axes) else "whole"
        rows.append(f"{path}  {leaf.dtype}{list(leaf.shape)}  {where}\n")
    return "".join(rows)


@pytest.mark.parametrize("mesh", MESHES)
def test_every_array_lies_where_it_is_written_down(mesh: str) -> None:
    assert dump(mesh).splitlines() == (GOLDENS / f"stage1_{mesh}.txt").read_text().splitlines()


@pytest.mark.parametrize("mesh", MESHES)
def test_no_large_array_is_whole_on_a_device(mesh: str) -> None:
    found = [
        path
        for path, leaf in state(mesh)
        if math.prod(leaf.shape) > LARGEST_WHOLE
        and math.prod(leaf.sharding.shard_shape(leaf.shape)) > math.prod(leaf.shape) // 2
    ]
    assert found == []


if __name__ == "__main__":
    GOLDENS.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_num_cpu_devices", 8)
    for mesh in MESHES:
        (GOLDENS / f"stage1_{mesh}.txt").write_text(dump(mesh))
