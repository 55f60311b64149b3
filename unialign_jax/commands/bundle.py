"""`unialign bundle`: a trained model as one folder that can be copied, checked and shipped."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

DTYPES = ("float32", "bfloat16", "float16")

HELP = "make a bundle, a folder that holds a trained model and nothing else, from a run directory"

_EPILOG = """\
inputs   RUN: a directory that `unialign train` wrote
outputs  DST/unialign.json (config, what it was made from, SHA-256 of every file),
         DST/transformer/, DST/text_encoder/, DST/tokenizer.json; all of it or nothing

Whatever takes a run directory as --model takes a bundle. Parameters are float32 again when read.

example
  unialign bundle runs/scenes models/scenes --dtype float16"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `unialign bundle`."""
    parser.epilog = _EPILOG
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="a run directory")
    add("destination", type=Path, metavar="DST", help="the bundle's folder")
    add("--weights", choices=("ema", "raw"), default="ema", help="moving average or last weights")
    add("--step", type=int, metavar="N", help="a saved step (default: the newest)")
    add("--dtype", choices=DTYPES, default="float32", help="of the stored arrays")
    add("--name", help="of the model (default: that of the folder)")
    add("--config", metavar="NAME", help="that the run was started with, to be recorded")
    add("--overwrite", action="store_true", help="replace a bundle that is there")


def run(args: argparse.Namespace, extra: Sequence[str]) -> int:
    """Makes the bundle and says how large it is.

    Returns:
        0.

    Raises:
        UserError: not a run, or a destination that is taken or cannot be written.
    """
    del extra
    from unialign_jax.sampling.bundling import bundle_run

    description = bundle_run(
        args.run,
        args.destination,
        args.weights,
        step=args.step,
        dtype=args.dtype,
        name=args.name,
        config_name=args.config,
        overwrite=args.overwrite,
    )
    files = [file for file in args.destination.expanduser().rglob("*") if file.is_file()]
    parts = ", ".join(
        f"{name} {part['parameters']:,} parameters"
        for name, part in description["components"].items()
    )
    size = sum(file.stat().st_size for file in files)
    print(f"{description['name']}: {parts}; {size:,} bytes in {len(files)} files, {args.dtype}")
    print(f"step {description['made_from']['step']} of {args.run} -> {args.destination}")
    if not description["made_from"]["data"]:
        print(
            "note: the data set of this run (data.path) is not found from here, so the bundle does "
            "not say what it was trained on; call this from the folder that training was started in"
        )
    return 0
