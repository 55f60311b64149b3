"""The sources of `unialign prepare`: their help, their options, and what they make of a call."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from unialign_jax.data.tasks import TRAINING_TASKS, Task
from unialign_jax.errors import UsageError, UserError

if TYPE_CHECKING:
    from unialign_jax.data.sources.source import Source

_OUTPUT = """\
output (OUT/):
  dataset.json           source, streams, shards, counts; written last
  generate/1.0.0/, ...   one TFDS data set per task (tfds.builder_from_directory reads it)
  tokenizer.json         {tokenizer}
  bad_records.jsonl      {unit} that were left out, with place and reason
  manifest/              what is finished; the same command continues from it
Exit codes: 0 good, 1 failed, 2 wrong call, 3 finished but {unit} were left out, 75 interrupted.
"""
_OUTPUT_OF_LINES = _OUTPUT.format(unit="lines", tokenizer="with --tokenizer or --train-tokenizer")

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

{_OUTPUT_OF_LINES}
example:
  unialign prepare jsonl --input lines.jsonl --out data/mine --train-tokenizer 4096
"""

_PHOTOS = f"""\
Writes twelve photographs that scikit-image carries (CC0 or public domain), with captions and
editing pairs, as JSONL and images to OUT/source, then prepares them like any other JSONL.

{_OUTPUT_OF_LINES}
example:
  unialign prepare photos --out data/photos
"""

_SEMGEN = f"""\
Takes the photographs of SemGen-Bench with their captions as text-to-image lines.

input: a folder with semgen_bench.jsonl and images/

{_OUTPUT_OF_LINES}
example:
  unialign prepare semgen --input SemGen-Bench/benchmark --out data/semgen
"""

_SCENES = f"""\
Draws scenes of coloured shapes from a seed, for all training tasks, with captions, instructions,
questions and answers. Example i of a task is the same whatever else is made. Combinations of
size, colour, shape and place that are held out for evaluation never occur.

input: none

{_OUTPUT.format(unit="examples", tokenizer="a token for every word of the level, or --tokenizer")}
examples:
  unialign prepare scenes --out data/scenes --records 20000
  unialign prepare scenes --out data/full --level full --records edit=50000 compose=20000
"""


@dataclasses.dataclass(frozen=True)
class SourceCommand:
    """One source as the command line knows it.

    Attributes:
        help: a line for the list of sources.
        description, epilog: of its own help.
        add_arguments: declares the options that only it has, and their defaults of common ones.
        make: the source of records that a call asks for. Sources that are no JSONL by nature
            write theirs to the folder first.
        foreign: whether it brings images and texts that may be bad, and options about them.
    """

    help: str
    description: str
    epilog: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    make: Callable[[argparse.Namespace, Path], Source]
    foreign: bool = True


def _jsonl_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", nargs="+", type=Path, required=True, metavar="FILE")
    parser.add_argument("--image-root", type=Path, help="folder that image paths start from")
    parser.add_argument(
        "--allow-outside", action="store_true", help="permit paths that lead out of that folder"
    )
    parser.add_argument(
        "--format",
        choices=("auto", "t2i", "edit", "compose", "perceive", "answer"),
        default="auto",
        help="format of the lines (default: by the keys of each line)",
    )


def _jsonl(args: argparse.Namespace, folder: Path) -> Source:
    from unialign_jax.data.sources.jsonl import JsonlOptions
    from unialign_jax.data.sources.jsonl_source import JsonlSource

    del folder
    if args.image_root is not None and not args.image_root.is_dir():
        raise UserError(f"--image-root {args.image_root} is not a folder")
    options = JsonlOptions(args.format, args.image_root, args.allow_outside)
    return JsonlSource(tuple(args.input), options)


def _photos_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--edits", type=int, default=2, help="editing pairs per photograph, 0 to 4 (default: 2)"
    )
    parser.set_defaults(size=256, train_tokenizer=512)


def _photos(args: argparse.Namespace, folder: Path) -> Source:
    from unialign_jax.data.sources import photos
    from unialign_jax.data.sources.jsonl_source import JsonlSource

    if not 0 <= args.edits <= 4:
        raise UsageError(f"--edits {args.edits}: 0 to 4")
    return JsonlSource(photos.write_photos(folder, size=args.size, edits=args.edits))


def _semgen_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--caption",
        choices=("t2i_long", "t2i_complex"),
        default="t2i_long",
        help="which text is the caption (default: t2i_long)",
    )
    parser.add_argument("--limit", type=int, help="at most so many lines")


def _semgen(args: argparse.Namespace, folder: Path) -> Source:
    from unialign_jax.data.sources import semgen
    from unialign_jax.data.sources.jsonl import JsonlOptions
    from unialign_jax.data.sources.jsonl_source import JsonlSource

    path = folder / "t2i.jsonl"
    semgen.write_t2i(args.input, path, caption=args.caption, limit=args.limit)
    return JsonlSource((path,), JsonlOptions(image_root=args.input))


def _scenes_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--level", default="demo", help="how rich the scenes are: demo (default) or full"
    )
    parser.add_argument(
        "--pixels", type=int, help="height and width of the images (default: the level's smallest)"
    )
    parser.add_argument(
        "--records",
        nargs="+",
        default=["20000"],
        metavar="N",
        help="records over all tasks, or TASK=N for each task (default: 20000)",
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=tuple(map(str, TRAINING_TASKS)),
        help="tasks that share the records equally (default: all)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of all scenes (default: 0)")


def _scenes(args: argparse.Namespace, folder: Path) -> Source:
    from unialign_jax.data.sources.scenes.source import ScenesSource

    del folder
    return ScenesSource(args.level, _counts(args.records, args.tasks), args.pixels, args.seed)


def _counts(given: list[str], tasks: list[str] | None) -> dict[Task, int]:
    """`--records` and `--tasks` as records of each task.

    Raises:
        UsageError: they make no sense, or give no record.
    """
    from unialign_jax.data.sources.scenes.source import spread

    if len(given) == 1 and given[0].isdecimal():
        chosen = [task for task in TRAINING_TASKS if tasks is None or task in tasks]
        counts = spread(int(given[0]), chosen)
    else:
        parts = [text.partition("=") for text in given]
        for text, (task, _, count) in zip(given, parts, strict=True):
            if task not in set(TRAINING_TASKS) or not count.isdecimal():
                known = ", ".join(TRAINING_TASKS)
                raise UsageError(f"--records {text}: a number, or TASK=N with one of {known}")
        if len({task for task, _, _ in parts}) < len(parts) or tasks is not None:
            raise UsageError("--records TASK=N: each task once, and no --tasks beside them")
        counts = {Task(task): int(count) for task, _, count in parts}
    if not any(counts.values()):
        raise UsageError("--records: at least 1")
    return counts


SOURCES = {
    "jsonl": SourceCommand(
        "JSONL lines in the reference's formats",
        "Turns JSONL lines and their images into records.",
        _JSONL,
        _jsonl_arguments,
        _jsonl,
    ),
    "photos": SourceCommand(
        "twelve photographs that come with scikit-image",
        "Prepares bundled photographs; nothing is downloaded.",
        _PHOTOS,
        _photos_arguments,
        _photos,
    ),
    "semgen": SourceCommand(
        "SemGen-Bench's photographs and captions",
        "Prepares SemGen-Bench's photographs with their captions.",
        _SEMGEN,
        _semgen_arguments,
        _semgen,
    ),
    "scenes": SourceCommand(
        "drawn scenes of coloured shapes, for all tasks",
        "Draws scenes for all training tasks; nothing is downloaded.",
        _SCENES,
        _scenes_arguments,
        _scenes,
        foreign=False,
    ),
}
