"""`unialign sample`: a file of jobs, or a single call, to images and texts in a folder."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unialign_jax.commands.arguments import positive, seed
from unialign_jax.errors import UsageError

if TYPE_CHECKING:
    from unialign_jax.data.tasks import Task
    from unialign_jax.sampling.items import Item
    from unialign_jax.sampling.job import JobReport
    from unialign_jax.sampling.pipeline import Pipeline

HELP = "make images, edits, maps or captions with a trained model"

_EPILOG = """\
inputs   --model: a run directory of `unialign train`, a bundle of `unialign bundle`, or the name of
         a bundle that comes with the package, such as scenes
         --input: JSONL, an item per line. Keys: `prompt` (generate), `image` (caption),
         `image` and `question` (answer), `image` and `instruction` (edit, perceive),
         `images` and `instruction` (compose); `id` and `seed` are optional.
         Without a file: --prompt, --image, --instruction, --question.
outputs  OUT/results.jsonl, a line per item; OUT/images/ID.png; OUT/grid.png with --grid

The same call again makes what is missing. Exit codes: 0 all made, 1 failed, 2 wrong call, 3 some
items failed, 75 stopped on request (Ctrl-C once; the batch is finished).

examples
  unialign sample --model runs/photos --task generate --input jobs.jsonl --out out
  unialign sample --model runs/photos --prompt "a red cube" --out out
  unialign sample --model runs/photos --image cat.jpg --instruction "make it night" --out out
  unialign sample --model runs/photos --image cat.jpg --out out"""

TASKS = ("generate", "caption", "answer", "edit", "perceive", "compose")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `unialign sample`."""
    parser.epilog = _EPILOG
    add = parser.add_argument
    add("--model", required=True, metavar="MODEL", help="run directory, bundle or name of one")
    add("--out", required=True, type=Path, metavar="DIR", help="output folder, made if missing")
    add("--task", choices=TASKS, help="needed with --input; else told from what is given")
    add("--input", type=Path, metavar="JSONL", help="the items")
    add("--prompt", action="append", help="a prompt for generate; may be repeated")
    add("--image", action="append", metavar="FILE", help="an image; repeated for compose")
    add("--instruction", help="for edit, perceive (also: depth, canny, pose) or compose")
    add("--question", help="for answer")
    add("--steps", type=positive, help="sampling steps (default: the model's config)")
    add("--guidance", type=float, help="classifier-free guidance; 1 is none (default: config)")
    add("--negative", help="what to steer away from (default: config)")
    add("--height", type=positive, help="of generated images (default: as trained)")
    add("--width", type=positive, help="of generated images (default: as trained)")
    add("--seed", type=seed, default=0, help="of items without a seed of their own (default: 0)")
    add("--batch", type=positive, help="items computed at once (default: 8, or fewer if so few)")
    add("--weights", choices=("ema", "raw"), default="ema", help="moving average or last weights")
    add("--dtype", choices=("float32", "bfloat16"), help="compute dtype (default: the model's)")
    add("--limit", type=positive, metavar="N", help="the first N items only")
    add("--shard", type=_shard, metavar="I/N", help="items I, I+N, I+2N, ... of N processes")
    add("--image-root", type=Path, metavar="DIR", help="where image paths start (default: JSONL's)")
    add("--allow-outside", action="store_true", help="image paths may lead out of the image root")
    add("--grid", action="store_true", help="also write grid.png, the first 64 items")
    add("--dry-run", action="store_true", help="check items and images; load and write nothing")


def run(args: argparse.Namespace, extra: Sequence[str]) -> int:
    """Makes the items.

    Returns:
        0, or 3 where items failed.

    Raises:
        UsageError: options that do not go together.
        UserError: no model, no items, or an output folder that cannot be written.
        Interrupted: stopped on request.
    """
    del extra
    from unialign_jax.sampling import job
    from unialign_jax.sampling.items import quick_items, read_items
    from unialign_jax.sampling.pipeline import LARGEST_BATCH
    from unialign_jax.sampling.writers import read_all, recorded_settings
    from unialign_jax.training.signals import StopRequest

    task = find_task(args)
    settings = job_settings(args, task)
    if args.input is not None:
        items = read_items(args.input, task, args.seed, args.limit)
    else:
        texts = args.prompt or [args.instruction or args.question or ""]
        items = quick_items(task, texts, args.image or [], args.seed, json.dumps(settings))
    options = job.JobOptions(
        task=task,
        out=args.out,
        image_root=args.image_root or (args.input.parent if args.input else Path()),
        # What was typed on the command line may lie anywhere.
        allow_outside=args.allow_outside or args.input is None,
        steps=args.steps,
        guidance=args.guidance,
        negative=args.negative,
        height=args.height,
        width=args.width,
        batch=args.batch or min(LARGEST_BATCH, 1 << (len(items) - 1).bit_length()),
        shard=args.shard or job.process_shard(),
        resume=args.input is not None,
    )
    if args.dry_run:
        return dry_run(job.check_items(items, options))
    if options.resume:
        recorded_settings(args.out, settings)

    with StopRequest() as stop:
        report = job.run_job(items, options, loader(args, settings), stop=lambda: bool(stop))
    if args.grid:
        from unialign_jax.sampling.job_grid import write_grid

        write_grid(items, options)
    if args.input is None:
        found = read_all(args.out)
        for item in items:
            result = found.get(item.id)
            if result is not None and result.error is None:
                print(result.text if result.text is not None else args.out / result.outputs[0])
    tell(report, args.out)
    return 3 if report.failed else 0


def find_task(args: argparse.Namespace) -> Task:
    """The task of a call, told from its options where --task is not given.

    Raises:
        UsageError: options that do not go together.
    """
    from unialign_jax.data.tasks import Task
    from unialign_jax.sampling.requests import INPUTS

    texts = {"prompt": args.prompt, "instruction": args.instruction, "question": args.question}
    given = [name for name, value in texts.items() if value is not None]
    if args.input is not None:
        if given or args.image:
            name = (given or ["image"])[0]
            raise UsageError(
                f"--{name} belongs to a call without --input; give the one or the other."
            )
        if args.task is None:
            raise UsageError(f"--input needs --task, one of {', '.join(TASKS)}.")
        task = Task(args.task)
    else:
        if len(given) > 1:
            raise UsageError(f"--{given[0]} and --{given[1]} do not go together.")
        if not given and not args.image:
            raise UsageError("nothing to sample: give --input, --prompt or --image.")
        several = len(args.image or []) > 1
        guess = {
            "prompt": "generate",
            "question": "answer",
            "instruction": "compose" if several else "edit",
        }
        task = Task(args.task or (guess[given[0]] if given else "caption"))
        takes = INPUTS[task]
        if given != ([takes.text] if takes.text else []):
            wanted = f"takes --{takes.text}" if takes.text else "takes an --image alone"
            raise UsageError(f"{task} {wanted}.")
        if bool(args.image) != bool(takes.images[1]):
            raise UsageError(f"{task} takes {'an' if takes.images[1] else 'no'} --image.")
    if task is not Task.GENERATE and (args.height or args.width):
        raise UsageError("--height and --width are for generate; other images are as trained.")
    return task


def job_settings(args: argparse.Namespace, task: Task) -> dict[str, Any]:
    """What the results depend on beside the items, as recorded in the output folder."""
    from unialign_jax.bundle.shipped import find_model

    names = ("weights", "dtype", "steps", "guidance", "negative", "height", "width", "seed")
    model = str(find_model(args.model).absolute())
    return {"task": str(task), "model": model, **{name: getattr(args, name) for name in names}}


def loader(args: argparse.Namespace, settings: dict[str, Any]) -> Callable[[], Pipeline]:
    """A function that loads the model: the newest step, or that of the job's first start."""

    def load() -> Pipeline:
        from unialign_jax.compilation_cache import enable_compilation_cache
        from unialign_jax.sampling.loading import load_model
        from unialign_jax.sampling.pipeline import Pipeline
        from unialign_jax.sampling.writers import record_settings, recorded_settings

        def read(step: int | None) -> tuple[Any, Any, int]:
            return load_model(args.model, args.weights, dtype=args.dtype, step=step)

        enable_compilation_cache()
        if args.input is None:
            model, params, _ = read(None)
            return Pipeline(model, params)
        recorded = recorded_settings(args.out, settings)
        model, params, step = read(recorded["checkpoint_step"] if recorded else None)
        if recorded is None:
            first = record_settings(args.out, {**settings, "checkpoint_step": step})
            if first["checkpoint_step"] != step:
                model, params, _ = read(first["checkpoint_step"])
        return Pipeline(model, params)

    return load


def dry_run(items: Sequence[Item]) -> int:
    """Prints what is wrong with the items; returns 0 where nothing is, else 3."""
    bad = [item for item in items if item.error is not None]
    for item in bad:
        print(item.error)
    print(f"{len(items)} items, {len(bad)} of them cannot be made; nothing was written")
    return 3 if bad else 0


def tell(report: JobReport, out: Path) -> None:
    """Prints how a job ended, to standard error."""
    parts = [f"{report.done} made"]
    if report.skipped:
        parts.append(f"{report.skipped} of them before")
    if report.failed:
        parts.append(f"{report.failed} failed")
    if report.truncated:
        parts.append(f"{report.truncated} prompts were longer than the model's texts and cut")
    for error in report.errors:
        print(error, file=sys.stderr)
    if report.failed > len(report.errors):
        print(f"... {report.failed} in all, see `error` in the results", file=sys.stderr)
    text = f"{', '.join(parts)}; {report.seconds:.1f} s; {out / 'results.jsonl'}"
    print(text, file=sys.stderr)


def _shard(text: str) -> tuple[int, int]:
    try:
        index, count = (int(part) for part in text.split("/"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form I/N, such as 0/4") from error
    if not 0 <= index < count:
        raise argparse.ArgumentTypeError(f"{text!r}: I counts from 0 and is below N")
    return index, count
