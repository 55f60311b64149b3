"""The device mesh: four named axes over the chips of one or more slices.

`data` replicates the parameters, `fsdp` shards them (gathered layer by layer), `context` shards
the tokens of a sample, `tensor` shards heads and MLP columns. Batches are split over `data` and
`fsdp` together. Links between slices are slow, so only `data` may cross them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from unialign_jax.errors import UsageError

AXES = ("data", "fsdp", "context", "tensor")
# A slice with this many devices keeps half of them out of `fsdp`.
_LARGE = 16
_MOST_FSDP = 64


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; at most one axis is -1 and takes what is left.

    `fsdp=0` chooses as many devices as TPU compilers gather and scatter weights over: 64 at most,
    and half of a slice of 16 or more. Over all of a square slice they sum whole weights instead.
    """

    data: int = -1
    fsdp: int = 1
    context: int = 1
    tensor: int = 1

    def shape(self, devices: int, slices: int = 1) -> tuple[int, int, int, int]:
        """Axis sizes for this many devices, in that many slices.

        Raises:
            UsageError: the axes cannot make up that number of devices.
        """
        sizes = {axis: getattr(self, axis) for axis in AXES}
        given = ", ".join(f"mesh.{axis}={size}" for axis, size in sizes.items())
        if sizes["fsdp"] == 0:
            sizes["fsdp"] = self._chosen_fsdp(devices // slices, slices)
        free = [axis for axis, size in sizes.items() if size == -1]
        if len(free) > 1 or any(size < 1 for size in sizes.values() if size != -1):
            raise UsageError(f"{given}: axes are at least 1, and at most one of them is -1.")
        fixed = math.prod(size for size in sizes.values() if size != -1)
        if free and devices % fixed == 0:
            sizes[free[0]] = devices // fixed
        if math.prod(size for size in sizes.values()) != devices:
            raise UsageError(
                f"{given} does not fit {devices} device(s): the product of the axes must be "
                f"{devices}. Set one axis to -1 to fill it."
            )
        data, fsdp, context, tensor = (sizes[axis] for axis in AXES)
        return data, fsdp, context, tensor

    def _chosen_fsdp(self, slice_size: int, slices: int) -> int:
        """The largest power of two that is a good and a possible number of devices."""
        most = slice_size if slice_size < _LARGE else min(_MOST_FSDP, slice_size // 2)
        in_slice = (abs(self.data) // slices, abs(self.context), abs(self.tensor))
        others = math.prod(max(1, size) for size in in_slice)
        chosen = 1
        while chosen * 2 <= most and slice_size % (chosen * 2 * others) == 0:
            chosen *= 2
        return chosen


def make_mesh(config: MeshConfig = MeshConfig(), devices: Sequence | None = None) -> Mesh:
    """A mesh of all (or the given) devices with Auto axes `data`, `fsdp`, `context`, `tensor`.

    Devices of several slices are laid out with `data` across the slices.

    Raises:
        UsageError: the axis sizes do not fit the devices, or `data` cannot span the slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    shape = config.shape(len(devices), slices)
    if slices > 1:
        if shape[0] % slices:
            raise UsageError(
                f"mesh.data={shape[0]} must be a multiple of the {slices} slices: only the data "
                "axis may cross the links between slices."
            )
        inner = (shape[0] // slices, *shape[1:])
        grid = mesh_utils.create_hybrid_device_mesh(inner, (slices, 1, 1, 1), devices)
    elif devices[0].platform == "tpu":
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        grid = np.asarray(devices).reshape(shape)
    # Explicit axes are JAX's default; the rules and constraints here are written for Auto ones.
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))
