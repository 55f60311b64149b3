"""`unialign evaluate`: scores of a trained model against a truth that is known."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unialign_jax.commands.arguments import positive, seed
from unialign_jax.errors import UsageError, UserError

if TYPE_CHECKING:
    from unialign_jax.data.sources.scenes.world import Level

HELP = "score a trained model, with baselines that need no model"

TASKS = ("generate", "caption", "answer", "edit", "perceive", "compose")

_SCENES = """\
inputs   --model: a run directory of `unialign train` on `unialign prepare scenes`, a bundle made of
         one, or the name of a bundle that comes with the package. The items are drawn on the spot,
         with combinations of size, colour, shape and place that training never shows.
outputs  OUT/scores.json (scores, baselines, kinds, attributes, confusion), OUT/items.jsonl (a line
         per item), OUT/shown/ (a few items per task as PNG and JSON); the table on standard output

Exit codes: 0 good, 1 failed, 2 wrong call, 75 interrupted.

example
  unialign evaluate scenes --model runs/scenes --items 200"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the targets and their options."""
    targets = parser.add_subparsers(dest="target", metavar="TARGET", required=True)
    parser.epilog = (
        "`unialign evaluate TARGET --help` explains a target.\n\nexample:\n"
        "  unialign evaluate scenes --model runs/scenes"
    )
    scenes = targets.add_parser(
        "scenes",
        help="drawn scenes, whose truth is known exactly",
        description="Scores all tasks on drawn scenes, read back from pixels and words.",
        epilog=_SCENES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = scenes.add_argument
    add("--model", required=True, type=Path, help="run directory, bundle or name of one")
    add("--items", type=positive, default=200, help="per task (default: 200)")
    add("--tasks", nargs="+", choices=TASKS, default=TASKS, metavar="TASK", help="default: all six")
    add("--level", help="of the world (default: that of the run's data)")
    add("--pixels", type=positive, help="height of the images (default: that of the run)")
    add(
        "--split",
        choices=("held_out", "seen"),
        default="held_out",
        help="combinations that training never shows (default), or those of training",
    )
    add("--seed", type=seed, default=0, help="of items and sampling (default: 0)")
    add("--batch", type=positive, default=64, help="items computed at once (default: 64)")
    add("--weights", choices=("ema", "raw"), default="ema", help="moving average or last weights")
    add("--step", type=seed, help="a saved step (default: the newest)")
    add("--out", type=Path, metavar="DIR", help="default: RUN/scenes_scores (of a bundle: here)")
    add("--json", action="store_true", help="print scores.json in place of the table")


def run(args: argparse.Namespace, extra: Sequence[str]) -> int:
    """Scores a model.

    Returns:
        0.

    Raises:
        UsageError: a level or size that is not there, or that does not fit the model.
        UserError: no model, or an output folder that cannot be written.
    """
    del extra
    from unialign_jax.bundle.contents import is_bundle
    from unialign_jax.bundle.shipped import find_model
    from unialign_jax.compilation_cache import enable_compilation_cache
    from unialign_jax.data.tasks import Task
    from unialign_jax.evaluation.scenes.evaluation import evaluate
    from unialign_jax.evaluation.scenes.results import save
    from unialign_jax.evaluation.scenes.table import table
    from unialign_jax.sampling.loading import load_model
    from unialign_jax.sampling.pipeline import Pipeline
    from unialign_jax.sampling.progress import SampleProgress

    model = find_model(args.model)
    # The folder of a bundle is what it was when it was made.
    out = args.out or (Path() if is_bundle(model) else model) / "scenes_scores"
    level, pixels = find_world(model, args.level, args.pixels)
    enable_compilation_cache()
    pipe = Pipeline(*load_model(model, args.weights, step=args.step)[:2])
    tasks = [task for task in Task if task in set(args.tasks)]
    progress = SampleProgress(args.items * len(tasks))
    try:
        evaluation = evaluate(
            pipe,
            level,
            pixels,
            args.items,
            args.seed,
            tasks,
            split=args.split,
            batch=min(args.batch, args.items),
            advance=lambda count: progress.advance(count, 0),
        )
    finally:
        progress.close()
    save(evaluation, out)
    print(json.dumps(evaluation.scores, indent=1) if args.json else table(evaluation.scores))
    if not args.json:
        print(f"{out / 'scores.json'} has the details")
    return 0


def find_world(run: Path, level: str | None, pixels: int | None) -> tuple[Level, int]:
    """The level and size that a run was trained on, unless they are given.

    Raises:
        UsageError: no such level, or a size that is not the run's or not the level's.
        UserError: the run's data do not say which level it was.
    """
    from unialign_jax.data.sources.scenes.world import level_named
    from unialign_jax.sampling.loading import data_source, model_config

    data: Any = model_config(run).get("data")
    if not isinstance(data, dict):
        raise UserError(f"{run}: its config has no section `data`; train again")
    if level is None:
        level = data_source(run).get("level")
    if level is None:
        raise UserError(
            f"{run}: the dataset.json of its data (data.path) is not there or of no scenes; say "
            "which level the model was trained on: --level demo or --level full"
        )
    found, trained = level_named(level), data.get("image_size")
    pixels = trained if pixels is None else pixels
    if pixels != trained:
        raise UsageError(f"--pixels {pixels}: the model of {run} makes images of {trained} pixels")
    if pixels not in found.pixels:
        sizes = ", ".join(map(str, found.pixels))
        raise UsageError(
            f"{run}: was trained at {pixels} pixels; level {level} is drawn at {sizes}. "
            "Is it the right --level?"
        )
    return found, pixels
