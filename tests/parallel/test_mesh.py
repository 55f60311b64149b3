"""The mesh: axis sizes from the config, Auto axes, `data` across slices."""

from __future__ import annotations

import dataclasses

import jax
import pytest
from jax.sharding import AxisType

from unialign_jax.errors import UserError
from unialign_jax.parallel.mesh import AXES, MeshConfig, make_mesh


def test_an_axis_of_minus_one_takes_what_is_left() -> None:
    assert MeshConfig().shape(8) == (8, 1, 1, 1)
    assert MeshConfig(data=2, fsdp=-1, tensor=2).shape(16) == (2, 4, 1, 2)


@pytest.mark.parametrize(
    ("devices", "slices", "fsdp"),
    [(1, 1, 1), (4, 1, 4), (8, 1, 8), (16, 1, 8), (64, 1, 32), (256, 1, 64), (512, 2, 64)],
)
def test_fsdp_of_zero_is_chosen(devices: int, slices: int, fsdp: int) -> None:
    assert MeshConfig(fsdp=0).shape(devices, slices) == (devices // fsdp, fsdp, 1, 1)


def test_a_chosen_fsdp_leaves_room_for_the_other_axes() -> None:
    assert MeshConfig(fsdp=0, context=2).shape(8) == (1, 4, 2, 1)
    assert MeshConfig(fsdp=0, data=2, tensor=2).shape(8) == (2, 2, 1, 2)
    assert MeshConfig(fsdp=0).shape(12) == (3, 4, 1, 1)
    assert MeshConfig(fsdp=0, data=2).shape(16, slices=2) == (2, 8, 1, 1)
    with pytest.raises(UserError, match="mesh.data=0, mesh.fsdp=0"):
        MeshConfig(fsdp=0, data=0).shape(8)


@pytest.mark.parametrize(
    "config",
    [
        MeshConfig(data=-1, fsdp=3),
        MeshConfig(data=2, fsdp=2),
        MeshConfig(data=-1, fsdp=-1),
        MeshConfig(data=0),
        MeshConfig(data=16),
    ],
)
def test_axes_that_do_not_fit_the_devices_are_refused_by_name(config: MeshConfig) -> None:
    with pytest.raises(UserError, match=rf"mesh.data={config.data}, mesh.fsdp={config.fsdp}"):
        config.shape(8)


def test_every_axis_is_auto() -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    assert mesh.axis_names == AXES
    assert mesh.axis_types == (AxisType.Auto,) * 4
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "context": 1, "tensor": 2}


def test_a_mesh_can_be_made_of_chosen_devices() -> None:
    assert make_mesh(MeshConfig(), jax.devices()[:3]).shape["data"] == 3


@dataclasses.dataclass(frozen=True)
class FakeChip:
    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "tpu"
    device_kind: str = "fake"

    @property
    def coords(self) -> tuple[int, int, int]:
        return self.id % 4, 0, 0

    core_on_chip = 0


def test_several_slices_need_data_to_span_them() -> None:
    chips = [FakeChip(i, i // 4) for i in range(8)]
    with pytest.raises(UserError, match="mesh.data=1 must be a multiple of the 2 slices"):
        make_mesh(MeshConfig(data=1, fsdp=8), chips)


def test_only_data_crosses_slices() -> None:
    chips = [FakeChip(i, i // 4) for i in range(8)]
    grid = make_mesh(MeshConfig(data=2, fsdp=4), chips).devices
    slices = [{chip.slice_index for chip in row.flat} for row in grid]
    assert sorted(map(sorted, slices)) == [[0], [1]]
