"""`unialign prepare`: JSONL and images, photographs or drawn scenes to an ArrayRecord data set."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unialign_jax.commands.prepare_sources import SOURCES
from unialign_jax.commands.progress import progress_bar
from unialign_jax.errors import Interrupted, UsageError

if TYPE_CHECKING:
    from unialign_jax.data.prepare import PrepareOptions, Summary
    from unialign_jax.data.sources.source import Source

HELP = "turn JSONL and images, or drawn scenes, into an ArrayRecord data set that TFDS can read"

EXIT_SOME_FAILED = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the sources and their options."""
    sources = parser.add_subparsers(dest="source", metavar="SOURCE", required=True)
    parser.epilog = "`unialign prepare SOURCE --help` explains a source."
    for name, source in SOURCES.items():
        inner = sources.add_parser(
            name,
            help=source.help,
            description=source.description,
            epilog=source.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        source.add_arguments(inner)
        _add_common(inner, source.foreign)


def _add_common(parser: argparse.ArgumentParser, foreign: bool) -> None:
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--shards", type=int, help="files per task (default: one per 512 records)")
    parser.add_argument("--overwrite", action="store_true", help="replace another data set in OUT")
    parser.add_argument(
        "--workers", type=int, default=0, help="processes (default: 0, works in this one)"
    )
    tokenizer = parser.add_mutually_exclusive_group()
    tokenizer.add_argument("--tokenizer", type=Path, help="a tokenizer.json to put beside the data")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="read the lines, look for the images, write nothing"
        if foreign
        else "count, write nothing",
    )
    if not foreign:
        return
    vocabulary, size = (parser.get_default(name) for name in ("train_tokenizer", "size"))
    tokenizer.add_argument(
        "--train-tokenizer",
        type=int,
        default=vocabulary,
        metavar="VOCABULARY",
        help="train a tokenizer with so many entries on the texts"
        + (f" (default: {vocabulary})" if vocabulary else ""),
    )
    parser.add_argument(
        "--size",
        type=int,
        default=size,
        help="scale the shorter side of larger images down to this "
        f"(default: {size or 'keep images as they are'})",
    )
    parser.add_argument(
        "--encoding",
        choices=("png", "jpeg"),
        default="png",
        help="of scaled images; png is exact (default)",
    )
    parser.add_argument(
        "--max-pixels",
        type=int,
        default=1 << 26,
        help="refuse images with more pixels (default: %(default)s)",
    )
    parser.add_argument(
        "--max-bad-share",
        type=float,
        default=0.01,
        help="stop above this share of bad lines; one is always allowed unless it is 0 "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--retry-bad", action="store_true", help="build shards with bad lines again"
    )


def _check(args: argparse.Namespace) -> None:
    for name in ("shards", "size", "max_pixels", "train_tokenizer", "limit"):
        value = getattr(args, name, None)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} {value}: at least 1")
    if args.workers < 0:
        raise UsageError(f"--workers {args.workers}: 0 or more")
    share = getattr(args, "max_bad_share", 0)
    if not 0 <= share <= 1:
        raise UsageError(f"--max-bad-share {share}: a fraction from 0 to 1")


def _options(args: argparse.Namespace) -> PrepareOptions:
    from unialign_jax.data.prepare import PrepareOptions
    from unialign_jax.data.shards import StoreOptions

    def given(kind: type) -> dict[str, Any]:
        names = (field.name for field in dataclasses.fields(kind))
        return {name: getattr(args, name) for name in names if hasattr(args, name)}

    options = PrepareOptions(store=StoreOptions(**given(StoreOptions)), **given(PrepareOptions))
    return dataclasses.replace(options, train_tokenizer=None) if args.tokenizer else options


def run(args: argparse.Namespace, extra: Sequence[str]) -> int:
    """Prepares a data set.

    Returns:
        0, or 3 when some items were left out.

    Raises:
        UserError: bad input or output; Interrupted after Ctrl-C, the same call continues.
    """
    del extra
    _check(args)
    options = _options(args)
    make = SOURCES[args.source].make
    try:
        if args.dry_run:
            return _dry_run(args, make)
        source = make(args, args.out / "source")
        summary = _prepare(source, args.out, options)
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"interrupted; finished shards in {args.out} are kept, the same command continues"
        ) from error
    _report(summary, source, args.out)
    return EXIT_SOME_FAILED if summary.bad else 0


def _dry_run(args: argparse.Namespace, make: Callable[[argparse.Namespace, Path], Source]) -> int:
    import tempfile

    from unialign_jax.data.prepare import survey

    with tempfile.TemporaryDirectory() as folder:
        source = make(args, Path(folder))
        summary = survey(source)
    print(f"{summary.total} {source.unit}: {_counted(summary.counts)}; nothing was written")
    if summary.bad:
        print(f"unusable: {_counted(summary.bad)}")
    _report_notes(summary)
    return EXIT_SOME_FAILED if summary.bad else 0


def _prepare(source: Source, out: Path, options: PrepareOptions) -> Summary:
    from unialign_jax.data.prepare import prepare

    with progress_bar(source.unit) as (on_start, advance):
        return prepare(source, out, options, on_start=on_start, advance=advance)


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"


def _report(summary: Summary, source: Source, out: Path) -> None:
    from unialign_jax.data.prepared import BAD_RECORDS_FILE

    print(
        f"{out}: {_counted(summary.counts)} "
        f"({summary.shards_written} shards written, {summary.shards_kept} already there)"
    )
    if summary.bad:
        left_out = sum(summary.bad.values())
        print(
            f"{left_out} of {summary.total} {source.unit} were left out "
            f"({_counted(summary.bad)}): {out / BAD_RECORDS_FILE} lists them"
        )
    _report_notes(summary)


def _report_notes(summary: Summary) -> None:
    for kind, note in summary.notes.items():
        print(f"kept, but to be noted: {note.count} {kind} (the first: {note.first})")
