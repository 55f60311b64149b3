"""The collectives of a compiled program: what moves, along which axis, how often, and in hiding.

Bytes are what a device sends (or receives) over its links in one execution, for a ring of g
devices: all-gather and reduce-scatter (g-1)/g of the whole array, all-reduce twice that, all-to-all
(g-1)/g of what a device holds, a permute all of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from unialign_jax.planning.groups import axes_of, first_group
from unialign_jax.planning.hlo import Instruction, Module

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_PLAIN = (*KINDS, "ragged-all-to-all")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the schedule.

    Attributes:
        kind: one of `KINDS`.
        array: the largest array that it moves, `bf16[6144,1536]`.
        axes: mesh axes, `fsdp`.
        group: devices that take part together.
        bytes: sent per device and execution.
        executions: per step, loops multiplied.
        synchronous: nothing else runs meanwhile.
        region: the computation in whose schedule it stands: a loop's body or the entry.
        where: what it is for, from the traced program.
    """

    kind: str
    array: str
    axes: str
    group: int
    bytes: float
    executions: int
    synchronous: bool
    region: str
    where: str


def find(module: Module, mesh: Mapping[str, int]) -> list[Collective]:
    """All collectives of a program on a mesh of these axes (in the mesh's order)."""
    found = []
    for line, times, region in module.scheduled():
        for op, computation, synchronous in _of(module, line, region):
            found.append(_describe(module, op, computation, mesh, times, synchronous, region))
    return [collective for collective in found if collective.group > 1]


def _of(module: Module, line: Instruction, region: str) -> Iterator[tuple[Instruction, str, bool]]:
    """The collectives that start with an instruction, with the computation they stand in."""
    if _base(line.op) in _PLAIN and not line.op.endswith("-done"):
        yield line, region, not line.op.endswith("-start")
        return
    if line.op not in ("fusion", "custom-call", "async-start"):
        return
    for name in line.called:
        inside = module.computations.get(name, [])
        ops = {op.name: op for op in inside if _base(op.op) in _PLAIN}
        if not ops:
            continue
        # An asynchronous collective appears in the fusion that starts it, in every fusion that
        # carries it on, and in the one that ends it. Only the first has this call.
        started = {
            operand
            for op in inside
            if op.attribute("custom_call_target") == "AsyncCollectiveStart"
            for operand in op.operands
        }
        carried = name.startswith("async_collective") or any(
            "AsyncCollective" in op.attribute("custom_call_target") for op in inside
        )
        for op in ops.values():
            if op.name in started:
                yield op, name, False
            elif not carried:
                yield op, name, line.op != "async-start"


def _base(op: str) -> str:
    return op.removesuffix("-start").removesuffix("-done")


def _describe(
    module: Module,
    op: Instruction,
    computation: str,
    mesh: Mapping[str, int],
    times: int,
    synchronous: bool,
    region: str,
) -> Collective:
    devices = 1
    for size in mesh.values():
        devices *= size
    group = first_group(op.rest, devices)
    names = module.by_name[computation]
    inputs = [a for o in op.operands if o in names for a in names[o].arrays]
    outputs = list(op.arrays)
    given = sum(a.bytes for a in inputs)
    kind = _base(op.op).removeprefix("ragged-")
    if kind == "all-reduce" and "reduce-scatter" in computation:
        kind = "reduce-scatter"
    size = _moved(kind, len(group), given, sum(a.bytes for a in outputs), op.op.endswith("-start"))
    largest = max([*inputs, *outputs], key=lambda a: a.bytes, default="")
    where = op.attribute("op_name") and op.rest.split('op_name="', 1)[1].split('"', 1)[0]
    return Collective(
        kind,
        str(largest),
        axes_of(group, mesh),
        len(group),
        size,
        times,
        synchronous,
        region,
        where,
    )


def _moved(kind: str, g: int, given: float, made: float, started: bool) -> float:
    """Bytes sent by a device; `given` and `made` are what it holds before and after.

    The type of a `-start` holds the operands too, so a gather's result is what is left of it.
    """
    share = (g - 1) / g
    if kind == "all-gather":
        return (max(made - given, given) if started else max(made, given)) * share
    if kind == "reduce-scatter":
        return max(given, made) * share
    if kind == "all-reduce":
        return 2 * (given or made) * share
    if kind == "collective-permute":
        return given or made
    return (given or made) * share


def summary(collectives: list[Collective]) -> dict[str, dict[str, float]]:
    """Kind -> executions and bytes per step and device."""
    table: dict[str, dict[str, float]] = {}
    for one in collectives:
        row = table.setdefault(one.kind, {"count": 0, "bytes": 0.0})
        row["count"] += one.executions
        row["bytes"] += one.executions * one.bytes
    return table


def by_axis(collectives: list[Collective]) -> list[dict[str, object]]:
    """One row per kind, axes and way of running, largest first."""
    table: dict[tuple[str, str, bool], dict[str, object]] = {}
    for one in collectives:
        key = one.kind, one.axes, one.synchronous
        row = table.setdefault(
            key,
            {
                "kind": one.kind,
                "axes": one.axes,
                "synchronous": one.synchronous,
                "count": 0,
                "bytes": 0.0,
            },
        )
        row["count"] += one.executions  # pyright: ignore[reportOperatorIssue]
        row["bytes"] += one.executions * one.bytes  # pyright: ignore[reportOperatorIssue]
    return sorted(table.values(), key=lambda row: -float(str(row["bytes"])))
