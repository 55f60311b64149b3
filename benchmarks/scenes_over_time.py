"""Scores against training time: examines every kept checkpoint of a run on scenes.

    unialign demo --workdir demo --config.checkpoint.every_steps=200 --config.checkpoint.keep=0
    python benchmarks/scenes_over_time.py demo/run --items 100
    unialign report --run demo/run --scores demo/scores

Leaves `scores_over_time.jsonl` beside the run, a line {"step", "seconds", "scores"} per checkpoint,
which the report draws. `seconds` are those of the logged steps: compiling and sample grids are left
out. A stopped call continues.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from unialign_jax.data.sources.scenes.world import LEVELS
from unialign_jax.evaluation.scenes.evaluation import evaluate
from unialign_jax.reporting.material import OVER_TIME_FILE, seconds_of
from unialign_jax.sampling.pipeline import Pipeline
from unialign_jax.training.checkpoints import Checkpoints
from unialign_jax.training.metrics import read_metrics
from unialign_jax.training.run_directory import RunDirectory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--items", type=int, default=100, help="per task (default: 100)")
    parser.add_argument("--level", default="demo", help="of the world (default: demo)")
    parser.add_argument("--steps", type=int, nargs="+", help="these only (default: every one kept)")
    args = parser.parse_args()
    run = RunDirectory(args.run)
    config = run.load_config()
    metrics = read_metrics(run.metrics)
    out = args.run / OVER_TIME_FILE
    done = (
        [json.loads(line)["step"] for line in out.read_text().splitlines()] if out.exists() else []
    )
    kept = Checkpoints(run.checkpoints).steps()
    missing = sorted(set(args.steps or ()) - set(kept))
    if missing:
        parser.error(f"no checkpoint of step {missing[0]} in {run.checkpoints}: kept are {kept}")
    for step in sorted(set(args.steps or kept)):
        if step in done:
            continue
        pipe = Pipeline.from_pretrained(args.run, step=step)
        pixels = config["data"]["image_size"]
        found = evaluate(pipe, LEVELS[args.level], pixels, args.items, training_examples=0)
        until = [line for line in metrics if line["step"] <= step]
        line = {
            "step": step,
            "seconds": round(seconds_of(until, config["train"]["global_batch"]), 1),
            "scores": {task: round(score, 4) for task, score in found.scores["scores"].items()},
        }
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
