"""`unialign prepare`: JSONL and images, or bundled photographs, to an ArrayRecord data set."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unialign_jax.errors import Interrupted, UsageError, UserError

if TYPE_CHECKING:
    from unialign_jax.data.prepare import PrepareOptions, Summary

HELP = "turn JSONL and images into an ArrayRecord data set that TFDS can read"

EXIT_SOME_FAILED = 3

_OUTPUT = """\
output (OUT/):
  dataset.json           streams, shards, counts; written last
  generate/1.0.0/, ...   one TFDS data set per task (tfds.builder_from_directory reads it)
  tokenizer.json         with --tokenizer or --train-tokenizer
  bad_records.jsonl      lines that were left out, with line number and reason
  manifest/              what is finished; the same command continues from it
Exit codes: 0 good, 1 failed, 2 wrong call, 3 finished but some lines were left out, 75 interrupted.
"""

_JSONL = f"""\
input, one JSON object per line (image paths relative to the file's folder or --image-root):
  text to image  {{"image": ["a.jpg"], "conversations": [{{"value": "a caption"}}]}}
  edit           {{"image": ["source.jpg", "target.jpg"], "instruction": "make it blue",
                  "conversations": [{{"value": "a caption of the target"}}]}}
  compose        {{"original_images": ["a.jpg", "b.jpg"], "generated_images": ["c.jpg"],
                  "edit_prompt": "both on a table", "caption": "a caption of the result"}}
  perceive       as edit, with "map_kind": "depth" (or --format perceive)
  answer         {{"image": ["a.jpg"], "conversations": [
                  {{"from": "human", "value": "what?"}}, {{"from": "gpt", "value": "a cat"}}]}}
                  (--format answer)

{_OUTPUT}
example:
  unialign prepare jsonl --input lines.jsonl --out data/mine --train-tokenizer 4096
"""

_PHOTOS = f"""\
Writes twelve photographs that scikit-image carries (CC0 or public domain), with captions and
editing pairs, as JSONL and images to OUT/source, then prepares them like any other JSONL.

{_OUTPUT}
example:
  unialign prepare photos --out data/photos
"""

_SEMGEN = f"""\
Takes the photographs of SemGen-Bench with their captions as text-to-image lines.

input: a folder with semgen_bench.jsonl and images/

{_OUTPUT}
example:
  unialign prepare semgen --input SemGen-Bench/benchmark --out data/semgen
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the sources and their options."""
    raw = argparse.RawDescriptionHelpFormatter
    sources = parser.add_subparsers(dest="source", metavar="SOURCE", required=True)
    parser.epilog = "`unialign prepare SOURCE --help` explains a source."

    lines = sources.add_parser(
        "jsonl",
        help="JSONL lines in the reference's formats",
        description="Turns JSONL lines and their images into records.",
        epilog=_JSONL,
        formatter_class=raw,
        allow_abbrev=False,
    )
    lines.add_argument("--input", nargs="+", type=Path, required=True, metavar="FILE")
    lines.add_argument("--image-root", type=Path, help="folder that image paths start from")
    lines.add_argument(
        "--allow-outside", action="store_true", help="permit paths that lead out of that folder"
    )
    lines.add_argument(
        "--format",
        choices=("auto", "t2i", "edit", "compose", "perceive", "answer"),
        default="auto",
        help="format of the lines (default: by the keys of each line)",
    )
    _add_common(lines)

    photos = sources.add_parser(
        "photos",
        help="twelve photographs that come with scikit-image",
        description="Prepares bundled photographs; nothing is downloaded.",
        epilog=_PHOTOS,
        formatter_class=raw,
        allow_abbrev=False,
    )
    photos.add_argument(
        "--edits", type=int, default=2, help="editing pairs per photograph, 0 to 4 (default: 2)"
    )
    _add_common(photos, size=256, vocabulary=512)

    semgen = sources.add_parser(
        "semgen",
        help="SemGen-Bench's photographs and captions",
        description="Prepares SemGen-Bench's photographs with their captions.",
        epilog=_SEMGEN,
        formatter_class=raw,
        allow_abbrev=False,
    )
    semgen.add_argument("--input", type=Path, required=True, metavar="FOLDER")
    semgen.add_argument(
        "--caption",
        choices=("t2i_long", "t2i_complex"),
        default="t2i_long",
        help="which text is the caption (default: t2i_long)",
    )
    semgen.add_argument("--limit", type=int, help="at most so many lines")
    _add_common(semgen)


def _add_common(
    parser: argparse.ArgumentParser, size: int | None = None, vocabulary: int | None = None
) -> None:
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--shards", type=int, help="files per task (default: one per 512 records)")
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
    parser.add_argument("--overwrite", action="store_true", help="replace another data set in OUT")
    tokenizer = parser.add_mutually_exclusive_group()
    tokenizer.add_argument("--tokenizer", type=Path, help="a tokenizer.json to put beside the data")
    tokenizer.add_argument(
        "--train-tokenizer",
        type=int,
        default=vocabulary,
        metavar="VOCABULARY",
        help="train a tokenizer with so many entries on the texts"
        + (f" (default: {vocabulary})" if vocabulary else ""),
    )
    parser.add_argument(
        "--workers", type=int, default=0, help="processes (default: 0, works in this one)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="read the lines, look for the images, write nothing"
    )


def _check(args: argparse.Namespace) -> None:
    for name in ("shards", "size", "max_pixels", "train_tokenizer", "limit"):
        value = getattr(args, name, None)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} {value}: at least 1")
    if args.workers < 0:
        raise UsageError(f"--workers {args.workers}: 0 or more")
    if not 0 <= args.max_bad_share <= 1:
        raise UsageError(f"--max-bad-share {args.max_bad_share}: a fraction from 0 to 1")
    if args.source == "photos" and not 0 <= args.edits <= 4:
        raise UsageError(f"--edits {args.edits}: 0 to 4")


def _options(args: argparse.Namespace) -> PrepareOptions:
    from unialign_jax.data.prepare import PrepareOptions
    from unialign_jax.data.shards import StoreOptions
    from unialign_jax.data.sources.jsonl import JsonlOptions

    root = getattr(args, "image_root", None)
    if root is not None and not root.is_dir():
        raise UserError(f"--image-root {root} is not a folder")
    source = JsonlOptions(
        format=getattr(args, "format", "auto"),
        image_root=args.input if args.source == "semgen" else root,
        allow_outside=getattr(args, "allow_outside", False),
        max_pixels=args.max_pixels,
    )
    return PrepareOptions(
        store=StoreOptions(source, args.shards, args.size, args.encoding),
        max_bad_share=args.max_bad_share,
        workers=args.workers,
        retry_bad=args.retry_bad,
        overwrite=args.overwrite,
        tokenizer=args.tokenizer,
        train_tokenizer=None if args.tokenizer else args.train_tokenizer,
    )


def _input_lines(args: argparse.Namespace, folder: Path) -> list[Path]:
    """The JSONL files to read; sources that are not JSONL write theirs to `folder` first."""
    from unialign_jax.data.sources import photos, semgen

    if args.source == "photos":
        return list(photos.write_photos(folder, size=args.size, edits=args.edits))
    if args.source == "semgen":
        path = folder / "t2i.jsonl"
        semgen.write_t2i(args.input, path, caption=args.caption, limit=args.limit)
        return [path]
    return args.input


def run(args: argparse.Namespace, extra: Sequence[str]) -> int:
    """Prepares a data set.

    Returns:
        0, or 3 when some lines were left out.

    Raises:
        UserError: bad input or output; Interrupted after Ctrl-C, the same call continues.
    """
    del extra
    _check(args)
    options = _options(args)
    try:
        if args.dry_run:
            return _dry_run(args, options)
        lines = _input_lines(args, args.out / "source")
        summary = _prepare(lines, args.out, options)
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"interrupted; finished shards in {args.out} are kept, the same command continues"
        ) from error
    _report(summary, args.out)
    return EXIT_SOME_FAILED if summary.bad else 0


def _dry_run(args: argparse.Namespace, options: PrepareOptions) -> int:
    import tempfile

    from unialign_jax.data.prepare import survey

    with tempfile.TemporaryDirectory() as folder:
        summary = survey(_input_lines(args, Path(folder)), options)
    print(f"{summary.lines} lines: {_counted(summary.counts)}; nothing was written")
    if summary.bad:
        print(f"unusable: {_counted(summary.bad)}")
    return EXIT_SOME_FAILED if summary.bad else 0


def _prepare(lines: Sequence[Path], out: Path, options: PrepareOptions) -> Summary:
    from unialign_jax.data.prepare import prepare

    with _progress() as (on_start, advance):
        return prepare(lines, out, options, on_start=on_start, advance=advance)


@contextlib.contextmanager
def _progress() -> Iterator[tuple[Callable[[int], None], Callable[[int], None]]]:
    """A progress bar on standard error; nothing where that is not a terminal."""
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    bar = progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("reading lines", total=None)

        def on_start(total: int) -> None:
            bar.update(task, description="lines", total=total)

        yield on_start, lambda count: bar.advance(task, count)


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"


def _report(summary: Summary, out: Path) -> None:
    from unialign_jax.data.prepared import BAD_RECORDS_FILE

    print(
        f"{out}: {_counted(summary.counts)} "
        f"({summary.shards_written} shards written, {summary.shards_kept} already there)"
    )
    if summary.bad:
        left_out = sum(summary.bad.values())
        print(
            f"{left_out} of {summary.lines} lines were left out ({_counted(summary.bad)}): "
            f"{out / BAD_RECORDS_FILE} lists them"
        )
