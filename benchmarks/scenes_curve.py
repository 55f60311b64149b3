"""The reference loss curve of a run, for others to lay theirs over.

    unialign demo --workdir demo
    python benchmarks/scenes_curve.py demo/run docs/results/scenes_demo_curve.json
    unialign demo --config scenes:full --workdir full
    python benchmarks/scenes_curve.py full/run docs/results/scenes_full_curve.json

`unialign report` draws docs/results/scenes_demo_curve.json under the curves of a run of
`scenes:demo`, and the other under those of `scenes:full`. The committed ones are of seed 0. A
third argument keeps the lines of every so many steps only, of a run that logged more often than its
config says.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

FIELDS = (
    *("step", "task", "loss", "loss/image", "loss/text", "loss/contrastive"),
    *("loss/align_image", "loss/align_text", "grad_norm", "lr"),
)


def rounded(value):
    return round(value, 6) if isinstance(value, float) else value


def main(run: str, out: str, every: str = "1") -> None:
    lines = map(json.loads, (Path(run) / "metrics.jsonl").read_text().splitlines())
    kept = (line for line in lines if line["step"] % int(every) == 0)
    rows = [{name: rounded(line[name]) for name in FIELDS if name in line} for line in kept]
    Path(out).write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
