"""Does it fit: the compiler's verdict, its peak, and the largest buffers by name."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

from unialign_jax.planning.flops import inner_jaxprs
from unialign_jax.planning.hardware import GIB, Chip
from unialign_jax.planning.hlo import Module

_NUMBER = r"([\d.]+)([KMGT]?)i?B?"
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of main memory of one device.

    Attributes:
        fits: what the compiler says.
        limit: what a program may use.
        arguments: the state and the batch.
        temporaries: what the step needs beside them.
        total: the peak; where it does not fit, what the compiler says it would need.
        largest: (bytes, array, where it comes from), largest first.
        message: the compiler's own words where it does not fit.
    """

    fits: bool
    limit: float
    arguments: float
    temporaries: float
    total: float
    largest: list[tuple[float, str, str]]
    message: str = ""

    def gib(self) -> dict[str, float]:
        """`hbm_gib` of the JSON contract."""
        return {
            name: round(getattr(self, name) / GIB, 3)
            for name in ("limit", "arguments", "temporaries", "total")
        }


def of_compiled(analysis: Any, module: Module, chip: Chip) -> Memory:
    """Memory of a program that compiled.

    `temp_size_in_bytes` is larger than what must fit at once; the peak is what counts.
    """
    arguments = float(analysis["arguments"])
    peak = float(analysis["peak"]) or arguments + float(analysis["temporaries"])
    return Memory(
        True, chip.limit, arguments, max(peak - arguments, 0.0), peak, largest_buffers(module)
    )


def of_failure(message: str, arguments: float, chip: Chip) -> Memory:
    """Memory of a program that the compiler refused, from what it says.

    Args:
        message: of the error.
        arguments: bytes of the state and batch on a device, which are known before compiling.
        chip: for the limit, where the message does not name it.
    """
    limit = _bytes(re.search(rf"available HBM \({_NUMBER}\)", message)) or _bytes(
        re.search(rf"Used {_NUMBER} of {_NUMBER} hbm", message), 3
    )
    temporaries = _bytes(re.search(rf"temporaries \({_NUMBER}\)", message))
    used = _bytes(re.search(rf"Used {_NUMBER} of", message))
    total = used or (temporaries or 0.0) + arguments
    return Memory(
        False,
        limit or chip.limit,
        arguments,
        temporaries or max(total - arguments, 0.0),
        total,
        _allocations(message),
        message[:2000],
    )


def is_out_of_memory(message: str) -> bool:
    """Whether an error of the compiler is about memory."""
    return "RESOURCE_EXHAUSTED" in message or "Ran out of memory" in message


def _bytes(found: re.Match[str] | None, group: int = 1) -> float:
    return float(found[group]) * _UNITS[found[group + 1]] if found else 0.0


def _allocations(message: str) -> list[tuple[float, str, str]]:
    """The list of largest allocations at the end of a message, if it has one."""
    found = []
    for block in re.split(r"\n\s*\d+\. Size: ", message)[1:]:
        size = _bytes(re.match(_NUMBER, block))
        shape = re.search(r"Shape: (\S+)", block)
        name = re.search(r'op_name="([^"]+)"', block) or re.search(r"Operator: (.+)", block)
        array = shape[1].split("{")[0] if shape else ""
        found.append((size, array, name[1] if name else ""))
    return found[:_SHOWN]


def largest_buffers(module: Module) -> list[tuple[float, str, str]]:
    """The largest arrays in main memory that the schedule makes, one row per shape and place."""
    found: dict[tuple[str, str], float] = {}
    for line, _, _ in module.scheduled():
        if line.op in ("parameter", "tuple", "get-tuple-element", "bitcast", "while"):
            continue
        for array in line.arrays:
            if array.in_hbm and array.bytes > 1 << 20:
                where = line.rest.split('op_name="', 1)
                place = where[1].split('"', 1)[0] if len(where) == 2 else line.name
                found[str(array), place] = float(array.bytes)
    rows = sorted(((size, *key) for key, size in found.items()), reverse=True)
    kept, seen = [], set()
    for row in rows:
        if row[1] not in seen:
            seen.add(row[1])
            kept.append(row)
    return kept[:_SHOWN]


def traced_buffers(jaxpr: Any, devices: int) -> list[tuple[float, str, str]]:
    """The largest arrays of a traced program, per device: for where the compiler names none.

    Their sizes are those of an even split; which of them live at once only the compiler knows.
    """
    found: dict[str, tuple[float, str]] = {}

    def walk(inner: Any, parts: int) -> None:
        for eqn in inner.eqns:
            local = 1 if eqn.primitive.name == "shard_map" else parts
            for v in eqn.outvars:
                shape = getattr(v.aval, "shape", ())
                size = math.prod(shape) * v.aval.dtype.itemsize / parts if shape else 0.0
                name = f"{v.aval.dtype.name}[{','.join(map(str, shape))}] / {parts}"
                found.setdefault(name, (size, str(eqn.source_info.name_stack)))
            for body in inner_jaxprs(eqn.params):
                walk(body, local)

    walk(getattr(jaxpr, "jaxpr", jaxpr), devices)
    rows = ((size, name, where) for name, (size, where) in found.items())
    return sorted(rows, reverse=True)[:_SHOWN]
