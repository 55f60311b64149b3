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
# Their time is not the matrix or vector units', or they take none.
_NO_TRAFFIC = frozenset(
    (
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call"),
        *("conditional", "after-all", "partition-id", "replica-id", "copy-done", "async-done"),
        *("all-gather-done", "all-reduce-done", "collective-permute-done", "slice-done", "iota"),
    )
)


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


def hbm_bytes(module: Module, line: Instruction, region: str) -> float:
    """Bytes that an instruction reads from and writes to main memory.

    A slice of a stacked array inside a fusion counts as the slice, an update in place as what is
    written. Arrays in the fast memory count nothing, the copies that bring them there do.
    """
    if line.op in _NO_TRAFFIC:
        return 0.0
    names = module.by_name[region]
    operands = [names.get(name) for name in line.operands]
    if line.op in ("copy-start", "slice-start"):
        # (destination, source, context): the moving of one array, in and out of main memory.
        moved = [a for a in line.arrays[:2] if a.shape]
        smallest = min((a.bytes for a in moved), default=0)
        return float(sum(smallest for a in moved if a.in_hbm))
    if line.op in ("dynamic-slice", "slice"):
        return 2.0 * sum(a.bytes for a in line.arrays if a.in_hbm)
    if line.op == "dynamic-update-slice":
        return 2.0 * sum(a.bytes for a in (operands[1].arrays if operands[1] else ()))
    if line.op != "fusion" or not line.called:
        read = sum(a.bytes for o in operands if o is not None for a in o.arrays if a.in_hbm)
        return float(read + sum(a.bytes for a in line.arrays if a.in_hbm))
    return _fusion_bytes(module, line, operands)


def _fusion_bytes(module: Module, line: Instruction, operands: list[Instruction | None]) -> float:
    body = module.computations.get(line.called[0], [])
    users: dict[str, list[Instruction]] = {}
    for inner in body:
        for name in inner.operands:
            users.setdefault(name, []).append(inner)
    parameters = {int(inner.rest.split(")")[0]): inner for inner in body if inner.op == "parameter"}
    total = 0.0
    updated: list[int] = []
    for position, operand in enumerate(operands):
        if operand is None or not any(a.in_hbm for a in operand.arrays):
            continue
        whole = sum(a.bytes for a in operand.arrays if a.in_hbm)
        inner = parameters.get(position)
        uses = users.get(inner.name, []) if inner is not None else []
        sliced = all(
            use.op in ("dynamic-slice", "slice") and use.operands[:1] == (inner.name,)
            for use in uses
            if inner is not None
        )
        if uses and sliced:
            total += sum(a.bytes for use in uses for a in use.arrays)
        elif inner is not None and any(
            use.op == "dynamic-update-slice" and use.operands[:1] == (inner.name,) for use in uses
        ):
            names = module.by_name[line.called[0]]
            for use in uses:
                update = names.get(use.operands[1]) if len(use.operands) > 1 else None
                total += sum(a.bytes for a in update.arrays) if update else 0
            updated.append(whole)
        elif uses or inner is None:
            total += whole
    for array in line.arrays:
        if not array.in_hbm:
            continue
        # Written in place: the update has been counted.
        if array.bytes in updated:
            updated.remove(array.bytes)
        else:
            total += array.bytes
    return total
