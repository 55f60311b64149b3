"""`unialign train`: from a config and a prepared data set to a run directory."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from unialign_jax import config as configs

HELP = """Train a model. The same call again continues where it stopped.

inputs   a config (by name or file) whose data.path is what `unialign prepare` wrote
outputs  in --workdir: config.json, checkpoints/, metrics.jsonl, TensorBoard events, samples/

Ctrl-C or SIGTERM finishes the step, saves, and exits with 75; twice stops at once.

example  unialign train --config photos --workdir runs/photos \\
             --config.data.path=data/photos --config.train.steps=2000"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options; `--config.KEY=VALUE` arguments are read by `run`."""
    parser.add_argument(
        "--config",
        required=True,
        metavar="NAME_OR_FILE",
        help="a shipped config (photos, photos:ARGUMENT) or the path of one",
    )
    parser.add_argument("--workdir", required=True, help="the run directory, made if missing")
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="continue a run with other values than it was started with, e.g. a learning rate",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved config, the parameters and the memory that the state needs",
    )


def run(args: argparse.Namespace, extra: Sequence[str]) -> int:
    """Runs the command; see HELP."""
    config = configs.to_plain(configs.load_config(args.config, extra))
    if args.dry_run:
        print(dry_run(config))
        return 0

    from unialign_jax.parallel import processes
    from unialign_jax.sampling.training_grid import make_sample_grid
    from unialign_jax.training.loop import train
    from unialign_jax.training.progress import duration

    processes.join()
    result = train(config, args.workdir, make_sample_grid, accept_changes=args.accept_changes)
    if jax.process_index() == 0:
        terms = ", ".join(f"{name} {value:.4g}" for name, value in result.values.items())
        reached = f"step {result.step} reached in {duration(result.seconds)}"
        print(f"{reached}: {terms or 'nothing to do'}")
        print(f"run directory: {args.workdir}")
    return 0


def dry_run(config: dict[str, Any]) -> str:
    """The description that `--dry-run` prints; works before the data set is there."""
    from unialign_jax.data import prepared
    from unialign_jax.data.tokenizer import TextTokenizer
    from unialign_jax.training.describe import describe
    from unialign_jax.training.setup import make_setup
    from unialign_jax.training.start import completed

    config = completed(config)
    directory = Path(config["data"]["path"])
    if not directory.exists():
        return describe(make_setup(config, None), (), ())
    data = prepared.Prepared(directory)
    setup = make_setup(config, TextTokenizer.from_file(data.tokenizer_path()))
    streams, weights = data.select(setup.data.mixture)
    return describe(setup, streams, weights)
