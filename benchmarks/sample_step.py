"""Sampling steps with guidance of ours against the same step in PyTorch, in turns.

    python benchmarks/sample_step.py --out benchmarks/results/sample_step_cpu.json

A step is one pass of a doubled batch, guidance and one Euler step; text embeddings are inputs
of both sides (the frozen T5 is in neither). benchmarks/README.md says how to read the figures.
"""

from __future__ import annotations

from benchmarks.peer import compare


def main() -> None:
    """Measures and writes."""
    assert __doc__
    args = compare.arguments(compare.parser("sample_step", __doc__.splitlines()[0]))
    compare.measure(args, "Sampling")


if __name__ == "__main__":
    main()
