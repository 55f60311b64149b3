"""How many bytes one instruction of a compiled program moves to and from the main memory."""

from __future__ import annotations

from collections.abc import Iterator

from unialign_jax.planning.hlo import Instruction, Module

# Their time is not the matrix or vector units', or they take none.
_NO_TRAFFIC = frozenset(
    (
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call"),
        *("conditional", "after-all", "partition-id", "replica-id", "copy-done", "async-done"),
        *("all-gather-done", "all-reduce-done", "collective-permute-done", "slice-done", "iota"),
    )
)


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
    total = 0.0
    updated: list[int] = []
    for position, operand in enumerate(operands):
        whole = sum(a.bytes for a in operand.arrays if a.in_hbm) if operand is not None else 0
        if not whole:
            continue
        inner = _parameter(module, line.called[0], position)
        if inner is None:
            total += whole
            continue
        parts = [_part(module, *use) for use in _uses(module, line.called[0], inner.name)]
        total += min(whole, sum(whole if part is None else part for part, _ in parts))
        if any(written for _, written in parts):
            updated.append(whole)
    for array in line.arrays:
        if not array.in_hbm:
            continue
        # Written in place: the update has been counted.
        if array.bytes in updated:
            updated.remove(array.bytes)
        else:
            total += array.bytes
    return total


def _part(module: Module, computation: str, name: str, use: Instruction) -> tuple[int | None, bool]:
    """(bytes of a value that an instruction touches, None for all; whether it writes them)."""
    if use.operands[:1] == (name,):
        if use.op in ("dynamic-slice", "slice"):
            return sum(a.bytes for a in use.arrays), False
        if use.op == "dynamic-update-slice":
            update = module.by_name[computation].get(use.operands[1])
            return sum(a.bytes for a in update.arrays) if update else 0, True
    return None, False


def _parameter(module: Module, computation: str, position: int) -> Instruction | None:
    for line in module.computations.get(computation, ()):
        if line.op == "parameter" and int(line.rest.split(")")[0]) == position:
            return line
    return None


def _uses(module: Module, computation: str, name: str) -> Iterator[tuple[str, str, Instruction]]:
    """(computation, the value's name there, instruction) of all that reads a value.

    Through bitcasts, changes of layout in place and the fusions inside a fusion.
    """
    for line in module.computations.get(computation, ()):
        if name not in line.operands:
            continue
        in_place = line.op == "fusion" and "output_to_operand_aliasing" in line.rest
        same = line.op == "bitcast" or (in_place and len(line.operands) == 1)
        if same and not line.root:
            yield from _uses(module, computation, line.name)
        elif line.op == "fusion" and line.called and not same:
            for position, operand in enumerate(line.operands):
                inner = _parameter(module, line.called[0], position) if operand == name else None
                if inner is not None:
                    yield from _uses(module, line.called[0], inner.name)
        else:
            yield computation, name, line
