"""Training steps of ours against the same step in PyTorch, in turns.

    python benchmarks/train_step.py --out benchmarks/results/train_step_cpu.json

A step is both branches, five losses, the gradient, clipping and AdamW; text embeddings are inputs
of both sides (the frozen T5 is in neither). benchmarks/README.md says how to read the figures.
"""

from __future__ import annotations

from benchmarks.peer import compare


def main() -> None:
    """Measures and writes."""
    assert __doc__
    args = compare.arguments(compare.parser("train_step", __doc__.splitlines()[0]))
    compare.measure(args, "Training")


if __name__ == "__main__":
    main()
