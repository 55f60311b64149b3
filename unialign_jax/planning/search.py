"""Which mesh, batch and remat policy: candidates are compiled quickly, the ones that fit ranked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from unialign_jax.models.mmdit_config import REMAT_POLICIES
from unialign_jax.planning.advice import LARGEST_FSDP
from unialign_jax.planning.batch import Case, with_values
from unialign_jax.planning.program import Plan, plan
from unialign_jax.planning.report import best_seconds
from unialign_jax.planning.topology import Topology

# Of the memory's limit: the runtime, fragmentation and a logged histogram need a little.
HEADROOM = 0.97
MOST_PER_DEVICE = 256
# From the most memory to the least, as far as the network knows them.
REMATS = tuple(n for n in ("dots_attention", "dots", "attention", "full") if n in REMAT_POLICIES)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A setting and the config overrides that make it."""

    fsdp: int
    remat: str
    per_device: int
    devices: int

    @property
    def values(self) -> dict[str, Any]:
        """As `with_values` takes them."""
        return {
            "mesh.fsdp": self.fsdp,
            "mesh.data": -1,
            "model.remat": self.remat,
            "train.global_batch": self.per_device * self.devices,
            "train.micro_batches": 1,
        }

    @property
    def overrides(self) -> str:
        """As arguments of `unialign train` and `unialign plan`."""
        return " ".join(f"--config.{key}={value}" for key, value in self.values.items())


def meshes(topology: Topology) -> list[int]:
    """Sizes of fsdp worth trying: powers of two up to 64 within a slice, the largest two."""
    within = topology.devices // topology.slices
    sizes = [n for n in (8, 16, 32, LARGEST_FSDP) if n <= within and within % n == 0]
    # A ring over all of a slice is what the compiler does worst.
    sizes = [n for n in sizes if n < within] or sizes or [within]
    return sizes[-2:]


def largest_batch(
    attempt: Callable[[int], Plan], most: int = MOST_PER_DEVICE
) -> tuple[Plan | None, int]:
    """The largest per-device batch that fits, within a sixteenth, in few compilations.

    Memory grows about linearly with the batch: two batches that fit say where a third should fill
    it. Batches that do not fit only bound it, and halve what is left where the line was wrong.

    Args:
        attempt: compiles with so many samples per device.
        most: never more than that.

    Returns:
        The plan of that batch and the batch; (None, 0) where one sample does not fit.
    """
    best: tuple[Plan | None, int] = (None, 0)
    refused, size = most + 1, 1
    fitting: list[tuple[int, float]] = []
    while True:
        tried = attempt(size)
        if _fits(tried):
            best = tried, size
            fitting = [*(fitting or [(0, tried.memory.arguments)]), (size, tried.memory.total)]
        else:
            refused = size
        if refused - best[1] <= max(1, best[1] // 16):
            return best
        predicted = _where_full(fitting, HEADROOM * tried.memory.limit)
        # The state and one batch alone are no line yet: some memory is the same for every batch.
        if len(fitting) > 2 and predicted - best[1] <= best[1] // 16:
            return best
        middle = (best[1] + refused) // 2
        size = max(best[1] + 1, predicted if predicted < refused else middle)


def _where_full(fitting: list[tuple[int, float]], room: float) -> int:
    """The batch at which a line through the last two (batch, bytes) reaches `room`."""
    (earlier, less), (size, total) = fitting[-2:]
    slope = max((total - less) / (size - earlier), 1.0)
    return size + int((room - total) / slope)


def _fits(tried: Plan) -> bool:
    return tried.memory.fits and tried.memory.total <= HEADROOM * tried.memory.limit


def search(
    config: Mapping[str, Any],
    topology: Topology,
    case: Case,
    devices: list[Any],
    *,
    remats: tuple[str, ...] = REMATS,
    most: int = MOST_PER_DEVICE,
    say: Callable[[str], None] = lambda text: None,
) -> list[tuple[Candidate, Plan]]:
    """Settings that fit, by samples per second and chip, best first.

    Every policy is tried on the largest fsdp axis, other sizes of it with the best policy only.
    Compiles are quick: memory and collectives are those of the real thing, times are bounds.

    Args:
        config: the stage.
        topology: what it is to run on.
        case: its most demanding program.
        devices: of the topology.
        remats: policies to try.
        most: largest per-device batch to try.
        say: told about every compilation.
    """

    def largest(fsdp: int, remat: str) -> list[tuple[Candidate, Plan]]:
        def attempt(size: int) -> Plan:
            values = Candidate(fsdp, remat, size, topology.devices).values
            done = plan(with_values(config, values), topology, case, devices, quick=True)
            verdict = "fits" if _fits(done) else "does not fit"
            gib = done.memory.gib()
            say(
                f"fsdp {fsdp}, remat {remat}, {size} per device: {verdict}, {gib['total']:.1f} "
                f"of {gib['limit']:.1f} GiB ({done.seconds:.0f} s)"
            )
            return done

        best, size = largest_batch(attempt, most)
        return [] if best is None else [(Candidate(fsdp, remat, size, topology.devices), best)]

    def seconds_per_sample(pair: tuple[Candidate, Plan]) -> float:
        return best_seconds(pair[1]) / pair[0].per_device

    *others, widest = meshes(topology)
    found = [pair for remat in remats for pair in largest(widest, remat)]
    if found:
        best = min(found, key=seconds_per_sample)[0].remat
        found += [pair for fsdp in others for pair in largest(fsdp, best)]
    return sorted(found, key=seconds_per_sample)
