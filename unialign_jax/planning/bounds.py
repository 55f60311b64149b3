"""From FLOPs, bytes and cycles to seconds: bounds that cannot be beaten, and an estimate.

Three answers, from the most to the least favourable:

- `overlapped`: compute, memory and links each at their peak, all at the same time; the slowest of
  them sets the step.
- `estimate`: XLA's cycles for everything but kernels, attention kernels at a stated share of what
  the matrix units can do at their depth, other kernels at the memory's peak, and collectives that
  nothing hides at the speed of one ring. Latency and stragglers are not in it.
- `serial`: the same peaks as `overlapped`, one after the other, collectives on one ring.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from unialign_jax.planning.collectives import Collective
from unialign_jax.planning.hardware import Chip
from unialign_jax.planning.work import COPIES, ELEMENTWISE, Work

# Share of the matrix units' throughput (at their depth) that an attention kernel reaches. Not
# measured here: splash attention on TPUs is reported between 50 and 70 %.
ATTENTION_EFFICIENCY = 0.6


@dataclasses.dataclass(frozen=True)
class StepFlops:
    """FLOPs per device and step.

    Attributes:
        model: the network forward and backward, nothing twice.
        text_encoder: a frozen encoder's forward; a trained one is in `model`.
        optimizer: matrix products of the update (Muon's), nobody's model.
        repeated: rematerialisation, and what attention kernels form again.
        attention: in attention kernels, `repeated` included.
        attention_depth: of their contractions; 0 without kernels.
    """

    model: float
    text_encoder: float
    optimizer: float
    repeated: float
    attention: float
    attention_depth: int

    @property
    def hardware(self) -> float:
        """What is executed."""
        return self.model + self.text_encoder + self.optimizer + self.repeated

    @property
    def useful(self) -> float:
        """What MFU counts: the model and its frozen encoder, no recomputation."""
        return self.model + self.text_encoder


def mfu(flops: StepFlops, seconds: float, chip: Chip) -> float:
    """Model FLOPs utilisation of a step of so many seconds."""
    return flops.useful / (seconds * chip.flops) if seconds else 0.0


def compute_seconds(flops: StepFlops, chip: Chip, efficiency: float = 1.0) -> float:
    """All products at peak, attention kernels at the share that their depth fills."""
    return (flops.hardware - flops.attention) / chip.flops + attention_seconds(
        flops, chip, efficiency
    )


def attention_seconds(flops: StepFlops, chip: Chip, efficiency: float) -> float:
    """Attention kernels: a contraction over 64 fills half of a matrix unit 128 deep."""
    if not flops.attention:
        return 0.0
    share = chip.matrix_share(flops.attention_depth)
    return flops.attention / (chip.flops * share * efficiency)


def roofline(
    flops: StepFlops, hbm_bytes: float, ici_bytes: float, dcn_bytes: float, chip: Chip
) -> dict[str, Any]:
    """Bounds with everything hidden behind the slowest, and with nothing hidden."""
    times = {
        "compute": compute_seconds(flops, chip),
        "hbm": hbm_bytes / chip.hbm_bytes,
        "interconnect": ici_bytes / chip.ici_all,
        "dcn": dcn_bytes / chip.dcn,
    }
    by = max(times, key=lambda name: times[name])
    ring = ici_bytes / chip.ici_ring
    serial = times["compute"] + times["hbm"] + ring + times["dcn"]
    return {
        "times": {**times, "interconnect_one_ring": ring},
        "overlapped": {
            "step_seconds": times[by],
            "mfu": mfu(flops, times[by], chip),
            "by": by,
        },
        "serial": {"step_seconds": serial, "mfu": mfu(flops, serial, chip)},
    }


def estimate(
    flops: StepFlops,
    work: Work,
    collectives: list[Collective],
    dcn_bytes: float,
    chip: Chip,
    efficiency: float = ATTENTION_EFFICIENCY,
) -> dict[str, Any]:
    """Seconds of a step with a breakdown in seconds, largest first.

    `elementwise_at_peak` is the same step if element-wise work and copies moved their bytes at the
    memory's peak in place of XLA's cycles.
    """
    parts = {name: cycles / chip.clock for name, cycles in work.cycles.items()}
    parts["attention"] = attention_seconds(flops, chip, efficiency)
    parts["other_kernels"] = work.kernel_bytes / chip.hbm_bytes
    parts["synchronous_collectives"] = sum(
        one.executions * one.bytes / chip.ici_ring for one in collectives if one.synchronous
    )
    parts["unhidden_collectives"] = unhidden(work, collectives, chip)
    parts["dcn"] = dcn_bytes / chip.dcn
    seconds = sum(parts.values())
    slow = parts[ELEMENTWISE] + parts[COPIES]
    quick = min(slow, work.elementwise_bytes / chip.hbm_bytes)
    order = sorted(parts, key=lambda name: -parts[name])
    return {
        "step_seconds": seconds,
        "mfu": mfu(flops, seconds, chip),
        "by": order[0],
        "parts": {name: parts[name] for name in order if parts[name]},
        "attention_efficiency": efficiency,
        "elementwise_at_peak": {
            "step_seconds": seconds - slow + quick,
            "mfu": mfu(flops, seconds - slow + quick, chip),
        },
    }


def unhidden(work: Work, collectives: list[Collective], chip: Chip) -> float:
    """Seconds by which the asynchronous collectives of a region outlast its computation."""
    waiting: dict[str, float] = {}
    for one in collectives:
        if not one.synchronous:
            seconds = one.executions * one.bytes / chip.ici_ring
            waiting[one.region] = waiting.get(one.region, 0.0) + seconds
    return sum(
        max(0.0, seconds - work.region_cycles.get(region, 0.0) / chip.clock)
        for region, seconds in waiting.items()
    )
