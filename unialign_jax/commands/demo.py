"""`unialign demo`: the whole path on this machine, from nothing to a gallery and a report."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from unialign_jax.commands.arguments import positive, seed
from unialign_jax.errors import Interrupted, UserError

HELP = "draw scenes, train one model on all six tasks, score it and show it; no downloads"

_EPILOG = """\
inputs   none: scenes are drawn from a seed
outputs  in --workdir: scenes/ (records, teacher), run/ (checkpoints, logs), scores/, gallery.png,
         report.html, summary.json

It runs the commands that it prints. A demo that was stopped continues with the same command.
`--config photos:small` learns twelve photographs by heart instead, which scikit-image carries.

Exit codes: 0 good, 1 failed, 2 wrong call, 75 interrupted.

examples
  unialign demo
  unialign demo --minutes 4 --workdir short
  unialign demo --config scenes:full --dry-run"""

PHOTOS = "photos:small"
CONFIGS = ("scenes:demo", "scenes:full", "scenes:gpu", PHOTOS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.epilog = _EPILOG
    add = parser.add_argument
    add("--workdir", type=Path, default=Path("unialign_demo"), help="default: ./unialign_demo")
    add("--config", choices=CONFIGS, default=CONFIGS[0], help=f"default: {CONFIGS[0]}")
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--minutes", type=_minutes, help="of training, about: as many steps as take that long"
    )
    length.add_argument("--steps", type=positive, help="of training (default: the config's)")
    add("--seed", type=seed, default=0, help="of scenes, training and scores (default: 0)")
    add(
        "--dry-run",
        action="store_true",
        help="print the commands and how long training will take; write nothing",
    )


def run(args: argparse.Namespace, extra: Sequence[str]) -> int:
    """Runs the demo; see HELP.

    Returns:
        0, or the exit code of the command that failed.

    Raises:
        UserError: another demo in the directory, or whatever a command finds; Interrupted after
            Ctrl-C, the same call continues.
    """
    from unialign_jax import config as configs
    from unialign_jax.commands import demo_photos, demo_scenes
    from unialign_jax.commands.demo_stages import make_plan, open_diary

    begin = time.monotonic()
    options = {
        "config": args.config,
        "seed": args.seed,
        "minutes": args.minutes,
        "steps": args.steps,
        "extra": list(extra),
    }
    diary = open_diary(args.workdir, options)
    config = configs.to_plain(configs.load_config(args.config, extra))
    demo = demo_photos if args.config == PHOTOS else demo_scenes
    print(demo.describe(args.config, config), flush=True)
    plan = make_plan(
        config,
        args.workdir / "run",
        chosen=diary.steps,
        steps=args.steps,
        minutes=args.minutes,
    )
    print(plan, flush=True)
    stages = demo.stages(args.workdir, args.config, config, plan.steps, args.seed, extra)
    if args.dry_run:
        for stage in stages:
            print(f"$ {stage.command}")
        return 0

    _make_directory(args.workdir)
    diary.steps, diary.starts = plan.steps, diary.starts + 1
    diary.save(args.workdir)
    try:
        return demo.run(args.workdir, stages, diary, begin)
    except KeyboardInterrupt as error:
        raise Interrupted(
            "stopped; what is finished is kept, the same command continues"
        ) from error
    finally:
        diary.spend("total", time.monotonic() - begin)
        diary.save(args.workdir)


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be made ({error.strerror or error}); choose another --workdir"
        ) from error


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e5:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of minutes above 0")
    return value
