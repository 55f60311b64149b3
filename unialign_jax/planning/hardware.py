"""What the accelerators can do at best: one row per kind, with where the figures come from.

All figures are per JAX *device*. A TPU v5e, v5p or v6e chip is one device; a TPU7x chip is two, so
its row holds half of a chip.

Sources: peaks, memory and links of TPUs from Google Cloud's pages on each generation
(cloud.google.com/tpu/docs) and the hardware table of the JAX scaling book; memory limits are what
libtpu says when a program is too large for it (the runtime keeps the rest); GPUs from NVIDIA's data
sheets, dense bfloat16. The clock follows from peak = arrays x width^2 x 2 x clock with 4 (v5e, v6e,
TPU7x) or 8 (v5p, two cores) matrix units. As a check, XLA's estimate of a bfloat16 product of
8192 x 8192 matrices with libtpu 0.0.40 corresponds to 88 % (v5e), 90 % (v5p), 70 % (v6e) and 80 %
(TPU7x) of the peak at that clock.
"""

from __future__ import annotations

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peaks of one device.

    Attributes:
        name: as topologies are named: `v5e`.
        flops: bfloat16 FLOP/s of the matrix units.
        hbm_bytes: bytes/s of its memory.
        limit: bytes of memory that a program may use.
        array_width: depth of a contraction that fills a matrix unit.
        clock: Hz, turns the compiler's cycles into seconds; 0 where there is no such estimate.
        ici_ring: bytes/s one way round one ring (one torus axis, both directions), which is what
            the emitted collectives use.
        ici_all: bytes/s one way over all links.
        dcn: bytes/s to other slices or hosts.
        devices_per_chip: 2 where JAX sees a chip as two devices.
    """

    name: str
    flops: float
    hbm_bytes: float
    limit: float
    array_width: int
    clock: float
    ici_ring: float
    ici_all: float
    dcn: float
    devices_per_chip: int = 1

    def matrix_share(self, depth: int) -> float:
        """The part of a matrix unit that contractions of this depth can fill, at most 1."""
        return min(1.0, depth / self.array_width) if self.array_width else 1.0


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", 197e12, 819e9, 15.75 * GIB, 128, 1.5e9, 90e9, 180e9, 3.1e9),
        Chip("v5p", 459e12, 2765e9, 95.74 * GIB, 128, 1.75e9, 180e9, 540e9, 6.25e9),
        Chip("v6e", 918e12, 1640e9, 31.25 * GIB, 256, 1.75e9, 180e9, 360e9, 12.5e9),
        # Half a chip; two devices share the links.
        Chip("tpu7x", 1153.5e12, 3690e9, 94.75 * GIB, 256, 2.2e9, 90e9, 270e9, 6.25e9, 2),
        Chip("h100", 989e12, 3350e9, 79.6 * GIB, 0, 0.0, 450e9, 450e9, 50e9),
        Chip("h200", 989e12, 4800e9, 139.8 * GIB, 0, 0.0, 450e9, 450e9, 50e9),
    )
}
GPUS = ("h100", "h200")
