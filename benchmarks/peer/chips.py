"""What a chip can do."""

from __future__ import annotations

# Dense bfloat16, per second, by a part of the device's name: NVIDIA's data sheets of H100 and H200
# SXM (1,979 TFLOP/s are with sparsity).
PEAKS = {"H200": 989e12, "H100": 989e12}


def peak(device_kind: str) -> float | None:
    """FLOP/s of a device of which we know them."""
    return next((value for name, value in PEAKS.items() if name in device_kind), None)
