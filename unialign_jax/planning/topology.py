"""Slices of TPUs and GPUs by name: their devices on a machine that has none of them.

libtpu describes and compiles for any slice without a TPU. It is a library of its own that is loaded
once per process, so the environment it reads is set before JAX asks for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib.util
import math
import os
import re
from typing import Any

from unialign_jax.errors import UsageError, UserError
from unialign_jax.planning.hardware import CHIPS, GPUS, Chip

# Without them libtpu asks the metadata server of a cloud machine for minutes, refuses a second
# process on the same host, and writes its logs to the terminal.
LIBTPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TPU_LOG_DIR": "disabled",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

# The slices that are rented most, for the message about one that does not exist.
KNOWN = (
    *("v5e:2x2", "v5e:4x4", "v5e:4x8", "v5e:8x8", "v5e:8x16", "v5e:16x16"),
    *("v6e:2x2", "v6e:4x4", "v6e:4x8", "v6e:8x8", "v6e:8x16", "v6e:16x16"),
    *("v5p:2x2x1", "v5p:2x2x2", "v5p:2x2x4", "v5p:2x4x4", "v5p:4x4x4", "v5p:4x4x8"),
    *("v5p:4x8x8", "v5p:8x8x8", "v5p:8x8x16", "tpu7x:2x2x1", "tpu7x:2x2x2", "tpu7x:4x4x4"),
    *("gpu:h100", "gpu:h200"),
)


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice, or several of the same shape, or GPUs.

    Attributes:
        name: as it was given, `v5p:4x4x4` or `gpu:h200:8`.
        chip: peaks of one device.
        slices: how many slices.
        devices: JAX devices in all of them.
    """

    name: str
    chip: Chip
    slices: int
    devices: int

    @property
    def chips(self) -> int:
        """Chips as they are rented."""
        return self.devices // self.chip.devices_per_chip

    @property
    def compiles(self) -> bool:
        """Whether the compiler for it runs here; there is none for GPUs without a GPU."""
        return self.chip.name not in GPUS


def parse(name: str, slices: int = 1) -> Topology:
    """Reads `KIND:AxB`, `KIND:AxBxC`, `gpu:KIND` or `gpu:KIND:COUNT`.

    Raises:
        UsageError: no such kind or shape; names the nearest one.
    """
    if slices < 1:
        raise UsageError(f"--slices is {slices}: at least 1")
    gpu = re.fullmatch(r"gpu:(\w+)(?::(\d+))?", name)
    if gpu and gpu[1] in GPUS:
        count = int(gpu[2] or 1)
        if count < 1:
            raise UsageError(f"topology {name!r}: at least one GPU")
        return Topology(name, CHIPS[gpu[1]], slices, count * slices)
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})", name)
    kind = match[1] if match else ""
    if match is None or kind not in CHIPS or kind in GPUS:
        raise _unknown(name)
    shape = [int(size) for size in match[2].split("x")]
    flat = kind in ("v5e", "v6e")
    if len(shape) != (2 if flat else 3) or min(shape) < 1:
        raise _unknown(name)
    chip = CHIPS[kind]
    return Topology(name, chip, slices, math.prod(shape) * slices * chip.devices_per_chip)


def _unknown(name: str) -> UsageError:
    near = difflib.get_close_matches(name, KNOWN, n=1, cutoff=0.3)
    hint = f"; the nearest is {near[0]}" if near else ""
    return UsageError(
        f"unknown topology {name!r}{hint}. A topology is a kind and a shape, such as "
        "v5e:16x16, v6e:16x16, v5p:4x4x4, tpu7x:4x4x4, or gpu:h200 (gpu:h200:8 for eight)."
    )


def devices(topology: Topology) -> list[Any]:
    """Descriptions of the topology's devices, to compile for; nothing can be run on them.

    Raises:
        UserError: libtpu is missing, or it knows no slice of that shape.
    """
    from jax.experimental import topologies

    for key, value in LIBTPU_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    # A slice shape of this name in the environment (a TPU VM's own) would win over the one asked.
    os.environ["TPU_ACCELERATOR_TYPE"] = LIBTPU_ENVIRONMENT["TPU_ACCELERATOR_TYPE"]
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "compiling for a TPU needs libtpu, which is not installed here (no TPU is needed). "
            "Install it: pip install 'unialign-jax[plan]'"
        )
    more = {"num_slices": topology.slices} if topology.slices > 1 else {}
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=topology.name, **more
        ).devices
    except Exception as error:
        # XLA's own error types; whatever it refuses is a wrong name here.
        raise _unknown(topology.name) from error
    return list(found)


def stand_ins(count: int) -> list[Any]:
    """CPU devices under the number of a slice's, to trace for hardware without a compiler here.

    Raises:
        UserError: this process has fewer devices.
    """
    import jax

    settings: Any = jax.config
    if settings.jax_num_cpu_devices < count:
        # Once JAX has looked for devices, their number stays.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", count)
    found = jax.devices("cpu")
    if len(found) < count:
        raise UserError(f"{count} devices are to be planned for, {len(found)} can be stood in for")
    return found[:count]
