"""Reads the text of a compiled TPU program: instructions, loops, and how often each one runs.

XLA prints one computation per block. Three things need care. Kernels carry payloads with braces in
them, so a computation ends where the next one begins. A loop's number of rounds stands in its
condition, as the constant that the counter is compared with. And the scheduled text splits an
asynchronous collective over several fusions; `collectives.py` counts it once.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

DTYPE_BYTES = {
    **dict.fromkeys(("pred", "s8", "u8", "s4", "u4", "f8e4m3fn", "f8e5m2"), 1),
    **dict.fromkeys(("bf16", "f16", "s16", "u16"), 2),
    **dict.fromkeys(("f32", "s32", "u32"), 4),
    **dict.fromkeys(("f64", "s64", "u64", "c64"), 8),
}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.+?) ([a-z][a-z0-9\-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](\{[^}]*\})?")
_CALLED = re.compile(
    r"(?:calls|to_apply|called_computations|branch_computations)=\{?(%?[\w.\-]+(?:, ?%?[\w.\-]+)*)"
)
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_FAST_MEMORY = re.compile(r"S\(([1-9]\d*)\)")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of an instruction's type: its bytes, and whether it lies in the main memory."""

    dtype: str
    shape: tuple[int, ...]
    in_hbm: bool

    @property
    def bytes(self) -> int:
        """Without padding."""
        return math.prod(self.shape) * DTYPE_BYTES.get(self.dtype, 4)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


def arrays(text: str) -> tuple[Array, ...]:
    """The arrays of a type such as `(f32[2,3]{1,0:T(8,128)S(1)}, s32[])`."""
    return tuple(
        Array(
            dtype,
            tuple(int(size) for size in shape.split(",") if size),
            not _FAST_MEMORY.search(layout or ""),
        )
        for dtype, shape, layout in _ARRAY.findall(text)
        if dtype in DTYPE_BYTES
    )


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: `%name = type op(operands), attributes`."""

    name: str
    type: str
    op: str
    operands: tuple[str, ...]
    rest: str
    root: bool

    @functools.cached_property
    def arrays(self) -> tuple[Array, ...]:
        """Of the result."""
        return arrays(self.type)

    @property
    def cycles(self) -> int:
        """XLA's own estimate; 0 where it makes none (kernels, collectives, copies in flight)."""
        found = _CYCLES.search(self.rest)
        value = int(found[1]) if found else 0
        # The largest int64 stands for "no idea", in compilations that save time on scheduling.
        return value if value < 1 << 60 else 0

    @property
    def called(self) -> tuple[str, ...]:
        """Computations that it runs, loops apart."""
        found = _CALLED.search(self.rest)
        return tuple(n.strip().lstrip("%") for n in found[1].split(",")) if found else ()

    def attribute(self, name: str) -> str:
        """`condition` of a while, `custom_call_target` of a custom call; "" if there is none."""
        found = re.search(rf'\b{name}="?%?([\w.\-]+)', self.rest)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program.

    Attributes:
        computations: their instructions in order, by name.
        entry: the computation that runs first.
    """

    computations: dict[str, list[Instruction]]
    entry: str

    def trips(self, loop: Instruction) -> int:
        """Rounds of a `while`; 1 where its text does not say."""
        known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest)
        if known:
            return int(known[1])
        constants = list(self._constants(loop.attribute("condition")))
        return max(constants, default=1)

    def _constants(self, name: str) -> Iterator[int]:
        """Whole numbers in a loop's condition and in what it calls."""
        for line in self.computations.get(name, ()):
            if line.op == "constant" and line.type.startswith("s32[]"):
                yield int(line.rest.split(")")[0])
            for inner in line.called:
                yield from self._constants(inner)

    def scheduled(self) -> Iterator[tuple[Instruction, int, str]]:
        """(instruction, executions, computation it stands in), in the order of the text.

        Bodies of loops, calls and branches are entered, fusions and kernels are not: a fusion is
        one piece of work.
        """
        yield from self._scheduled(self.entry, 1)

    def _scheduled(self, name: str, times: int) -> Iterator[tuple[Instruction, int, str]]:
        for line in self.computations.get(name, ()):
            yield line, times, name
            if line.op == "while":
                yield from self._scheduled(line.attribute("body"), times * self.trips(line))
            elif line.op in ("call", "conditional", "async-start"):
                for inner in line.called:
                    yield from self._scheduled(inner, times)

    @functools.cached_property
    def by_name(self) -> dict[str, dict[str, Instruction]]:
        """Computation -> instruction name -> instruction."""
        return {
            name: {line.name: line for line in lines} for name, lines in self.computations.items()
        }


def parse(text: str) -> Module:
    """Reads the output of `compiled.as_text()`.

    Raises:
        ValueError: there is no entry computation in it.
    """
    computations: dict[str, list[Instruction]] = {}
    current: list[Instruction] | None = None
    entry = ""
    for line in text.splitlines():
        if line and not line[0].isspace():
            begin = _COMPUTATION.match(line)
            if begin:
                current = computations.setdefault(begin[2], [])
                entry = begin[2] if begin[1] else entry
            continue
        found = _INSTRUCTION.match(line) if current is not None else None
        if found and current is not None:
            root, name, kind, op, rest = found.groups()
            names = re.findall(r"%([\w.\-]+)", rest.split(")", 1)[0])
            current.append(Instruction(name, kind, op, tuple(names), rest, bool(root)))
    if not entry:
        raise ValueError("this is no text of a compiled program: it has no ENTRY computation")
    return Module(computations, entry)
