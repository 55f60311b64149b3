"""Where the time of a compiled program goes by XLA's own estimates, and how much memory it moves.

XLA attaches a number of cycles to most fusions. It estimates neither Pallas kernels nor
collectives; `bounds.py` adds those. Against the memory's peak the estimate is slow for element-wise
work (a bfloat16 addition of large arrays is given 2 to 4 times its bytes / bandwidth), so bytes are
counted beside it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable

from unialign_jax.planning.hlo import Instruction, Module
from unialign_jax.planning.traffic import hbm_bytes

MATMUL, ELEMENTWISE, COPIES, OTHER = CATEGORIES = ("matmul", "elementwise", "copies", "other")

_MOVES = frozenset(
    (
        *("copy", "bitcast", "transpose", "reshape", "slice", "dynamic-slice", "concatenate"),
        *("dynamic-update-slice", "pad", "broadcast", "parameter", "constant", "tuple", "iota"),
        *("get-tuple-element", "convert", "copy-start", "copy-done", "slice-start", "slice-done"),
    )
)
_PRODUCTS = frozenset(("convolution", "dot"))
_OTHER = frozenset(("sort", "gather", "scatter", "rng", "rng-bit-generator", "topk"))


@dataclasses.dataclass(frozen=True)
class Work:
    """Totals of one step of one device.

    Attributes:
        cycles: category -> XLA's estimate.
        region_cycles: computation of the schedule -> cycles in it, all rounds.
        hbm_bytes: bytes read from and written to main memory by all instructions.
        elementwise_bytes: the part of element-wise work and copies.
        kernels: name of a Pallas kernel -> executions.
        kernel_bytes: main memory traffic of the kernels that are not attention.
        heaviest: (cycles, executions, category, where) of the fusions that take longest.
    """

    cycles: dict[str, float]
    region_cycles: dict[str, float]
    hbm_bytes: float
    elementwise_bytes: float
    kernels: dict[str, int]
    kernel_bytes: float
    heaviest: list[tuple[float, int, str, str]]


def measure(module: Module) -> Work:
    """Adds up a program, loops multiplied."""
    cycles: Counter[str] = Counter()
    regions: Counter[str] = Counter()
    kernels: Counter[str] = Counter()
    places: dict[tuple[str, str], list[float]] = {}
    total = elementwise = in_kernels = 0.0
    traffic: dict[tuple[str, str], float] = {}
    for line, times, region in module.scheduled():
        category = category_of(module, line)
        estimate = times * line.cycles
        if estimate:
            cycles[category] += estimate
            regions[region] += estimate
            where = line.rest.split('op_name="', 1)[-1].split('"', 1)[0][:120]
            row = places.setdefault((category, where), [0.0, 0])
            row[0] += estimate
            row[1] += times
        key = region, line.name
        if key not in traffic:
            traffic[key] = hbm_bytes(module, line, region)
        total += times * traffic[key]
        if line.attribute("custom_call_target") == "tpu_custom_call":
            name = kernel_name(line)
            kernels[name] += times
            in_kernels += 0.0 if "splash" in name else times * traffic[key]
            continue
        if category in (ELEMENTWISE, COPIES):
            elementwise += times * traffic[key]
    heaviest = sorted(((c, int(n), *key) for key, (c, n) in places.items()), reverse=True)[:12]
    return Work(
        {name: float(cycles[name]) for name in CATEGORIES},
        dict(regions),
        total,
        elementwise,
        dict(kernels),
        in_kernels,
        heaviest,
    )


def kernel_name(line: Instruction) -> str:
    """The name that a Pallas kernel was given, from the path of its operation."""
    path = line.rest.split('op_name="', 1)[-1].split('"', 1)[0]
    kernel = line.rest.split('kernel_name = "', 1)
    if len(kernel) == 2:
        return kernel[1].split('"', 1)[0]
    return path.rstrip("/").rsplit("/", 1)[-1].removeprefix("pallas_call ") or line.name


def category_of(module: Module, line: Instruction) -> str:
    """What kind of work an instruction is."""
    ops = {line.op}
    if line.op == "fusion":
        ops = set(_inside(module, line))
    if ops & _PRODUCTS:
        return MATMUL
    if ops & _OTHER:
        return OTHER
    if ops <= _MOVES:
        return COPIES
    return ELEMENTWISE


def _inside(module: Module, line: Instruction) -> Iterable[str]:
    for name in line.called:
        for inner in module.computations.get(name, ()):
            if inner.op == "fusion":
                yield from _inside(module, inner)
            else:
                yield inner.op
