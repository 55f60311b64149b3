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

from unialign_jax.errors import UserError

AXES = ("data", "fsdp", "context", "tensor")


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; at most one axis is -1 and takes what is left.

    `fsdp` of 64 at most is advised: over a whole large slice the TPU compiler turns the gathers
    of weights into blocking reductions.
    """

    data: int = -1
    fsdp: int = 1
    context: int = 1
    tensor: int = 1

    def shape(self, devices: int) -> tuple[int, int, int, int]:
        """Axis sizes for this many devices.

        Raises:
            UserError: the axes cannot make up that number of devices.
        """
        sizes = {axis: getattr(self, axis) for axis in AXES}
        given = ", ".join(f"mesh.{axis}={size}" for axis, size in sizes.items())
        free = [axis for axis, size in sizes.items() if size == -1]
        if len(free) > 1 or any(size < 1 for size in sizes.values() if size != -1):
            raise UserError(f"{given}: axes are at least 1, and at most one of them is -1.")
        fixed = math.prod(size for size in sizes.values() if size != -1)
        if free and devices % fixed == 0:
            sizes[free[0]] = devices // fixed
        if math.prod(size for size in sizes.values()) != devices:
            raise UserError(
                f"{given} does not fit {devices} device(s): the product of the axes must be "
                f"{devices}. Set one axis to -1 to fill it."
            )
        data, fsdp, context, tensor = (sizes[axis] for axis in AXES)
        return data, fsdp, context, tensor


def make_mesh(config: MeshConfig = MeshConfig(), devices: Sequence | None = None) -> Mesh:
    """A mesh of all (or the given) devices with Auto axes `data`, `fsdp`, `context`, `tensor`.

    Devices of several slices are laid out with `data` across the slices.

    Raises:
        UserError: the axis sizes do not fit the devices, or `data` cannot span the slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = config.shape(len(devices))
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1:
        if shape[0] % slices:
            raise UserError(
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
