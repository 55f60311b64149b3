"""`unialign cache`: a teacher's features of every record, computed once, beside the records."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unialign_jax.commands.progress import progress_bar
from unialign_jax.errors import Interrupted, UsageError, UserError

if TYPE_CHECKING:
    from unialign_jax.caching.parts import CacheOptions
    from unialign_jax.caching.scenes_teacher import ScenesTeacher
    from unialign_jax.caching.writer import Summary
    from unialign_jax.data.prepared import Prepared

HELP = "compute a teacher's features of a prepared data set once, for the alignment losses"

EXIT_SOME_FAILED = 3

_EPILOG = """\
inputs   --data: what `unialign prepare` wrote
         --teacher scenes: a small dual encoder, trained on the data set's `generate` records when
         there is none in --teacher-dir yet (seconds)
outputs  DATA/features/NAME/: a part per shard of records, and cache.json, written last
         DATA/teacher/ (or --teacher-dir): the trained teacher

Training reads the features with --config.data.features=NAME. The same command continues where it
was stopped. Exit codes: 0 good, 1 failed, 2 wrong call, 3 finished but some records could not be
read (training replaces them too), 75 interrupted.

example  unialign cache --data data/scenes --teacher scenes"""

TEACHERS = ("scenes",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.epilog = _EPILOG
    parser.add_argument("--data", type=Path, required=True, help="a prepared data set")
    parser.add_argument("--teacher", choices=TEACHERS, required=True, help="whose features")
    parser.add_argument(
        "--teacher-dir",
        type=Path,
        metavar="T",
        help="where a trained teacher is, or goes (default: DATA/teacher)",
    )
    parser.add_argument(
        "--name",
        help="of the features (default: the teacher's name, with _grid behind it for --grid)",
    )
    parser.add_argument(
        "--grid",
        action="store_true",
        help="features of an image's parts, for objective.image_alignment = tokens",
    )
    parser.add_argument(
        "--dtype", choices=("float16", "float32"), default="float16", help="default: float16"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the teacher's training (default: 0)"
    )
    parser.add_argument(
        "--batch", type=int, default=64, help="images, or texts, at once (default: 64)"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace features, and a teacher in DATA/teacher, that were made from something else",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be computed; write nothing"
    )


def run(args: argparse.Namespace, extra: Sequence[str]) -> int:
    """Trains the teacher where it has to, then computes the features; see HELP.

    Returns:
        0, or 3 when some records could not be read.

    Raises:
        UserError: bad input or output; Interrupted after Ctrl-C, the same call continues.
    """
    del extra
    if args.batch < 1:
        raise UsageError(f"--batch {args.batch}: at least 1")
    if not 0 <= args.seed < 2**32:
        raise UsageError(f"--seed {args.seed}: a whole number from 0 to 2^32 - 1")
    from unialign_jax.caching.parts import CacheOptions
    from unialign_jax.caching.writer import write_cache
    from unialign_jax.compilation_cache import enable_compilation_cache
    from unialign_jax.data.features import cache_directory
    from unialign_jax.data.prepared import Prepared

    data = Prepared(args.data)
    name = args.name or (f"{args.teacher}_grid" if args.grid else args.teacher)
    cache_directory(data.directory, name)
    options = CacheOptions(args.grid, args.dtype, args.batch, args.overwrite)
    if args.dry_run:
        return _dry_run(data, name, args)
    enable_compilation_cache()
    try:
        teacher = _scenes_teacher(data, args)
        with progress_bar(f"features {name}") as (on_start, advance):
            summary = write_cache(data, teacher, name, options, on_start=on_start, advance=advance)
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"interrupted; finished parts in {data.directory} are kept, the same command continues"
        ) from error
    _report(summary, options)
    return EXIT_SOME_FAILED if summary.bad else 0


def _scenes_teacher(data: Prepared, args: argparse.Namespace) -> ScenesTeacher:
    """The teacher that is there, else a trained one."""
    from unialign_jax.caching.scenes_teacher import ScenesTeacher
    from unialign_jax.training.teacher import TeacherOptions, train_teacher

    directory = _teacher_directory(args)
    if _has_teacher(directory):
        teacher = ScenesTeacher.load(directory)
        made = {"seed": teacher.training.get("seed"), "data": teacher.training.get("data")}
        # A teacher that is named is taken as it is; the data set's own must be this one.
        if args.teacher_dir is not None or made == {"seed": args.seed, "data": data.fingerprint}:
            print(f"teacher: {directory}{_quality(teacher)}")
            return teacher
        if not args.overwrite:
            raise UserError(
                f"{directory} holds a teacher that was trained with another --seed or on another "
                "version of the records: give --overwrite to train it and compute its features "
                f"again, or --teacher-dir {directory} to keep it"
            )
    begin = time.monotonic()
    with progress_bar("training the teacher") as (on_start, advance):
        options = TeacherOptions(seed=args.seed)
        teacher = train_teacher(data, options, on_start=on_start, advance=advance)
    teacher.save(directory)
    seconds = time.monotonic() - begin
    records = teacher.training["records"]
    print(
        f"teacher: trained on {records} records in {seconds:.1f} s: {directory}{_quality(teacher)}"
    )
    return teacher


def _teacher_directory(args: argparse.Namespace) -> Path:
    return args.teacher_dir or args.data / "teacher"


def _has_teacher(directory: Path) -> bool:
    from unialign_jax.caching.scenes_teacher import CONFIG_FILE

    return (directory / CONFIG_FILE).is_file()


def _quality(teacher: ScenesTeacher) -> str:
    """How well it finds captions, where that was measured."""
    found, among = teacher.training.get("retrieval"), teacher.training.get("tested_on")
    if found is None or not among:
        return ""
    return (
        f"; finds the caption of {found:.0%} of {among} images held apart (chance {1 / among:.0%})"
    )


def _dry_run(data: Prepared, name: str, args: argparse.Namespace) -> int:
    from unialign_jax.caching.writer import cached_streams, plan_jobs
    from unialign_jax.data.features import cache_directory

    directory = _teacher_directory(args)
    there = _has_teacher(directory)
    print(f"teacher: {directory}{'' if there else ', to be trained'}")
    counts = {stream.name: stream.size for stream in cached_streams(data)}
    print(
        f"{cache_directory(data.directory, name)}: {_counted(counts)} in {len(plan_jobs(data))} "
        "parts; nothing was written"
    )
    return 0


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"


def _report(summary: Summary, options: CacheOptions) -> None:
    shape = " x ".join(map(str, summary.image_shape))
    channels = math.prod(summary.image_shape[-1:])
    print(
        f"{summary.directory}: {_counted(summary.counts)}, {summary.captions} captions; images "
        f"{shape}, captions {channels}, {options.dtype}, {summary.bytes / 2**20:.1f} MiB "
        f"({summary.parts_written} parts written, {summary.parts_kept} already there)"
    )
    if summary.bad:
        print(
            f"{sum(summary.bad.values())} records could not be read ({_counted(summary.bad)}) and "
            "have no features; training replaces them by others"
        )
