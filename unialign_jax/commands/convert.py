"""`unialign convert`: PyTorch weights to a model bundle, and a trained model to PyTorch."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unialign_jax.commands.progress import progress_bar
from unialign_jax.errors import UsageError

if TYPE_CHECKING:
    from unialign_jax.convert.recognise import Found

HELP = "PyTorch weights to a model bundle (to-jax), or a model to PyTorch (to-torch), bit for bit"

_TO_JAX = """\
inputs   SRC, told by its content: a published UniAlignment or D-DiT directory (model_index.json), a
         training checkpoint (consolidated.00-of-01.safetensors), a transformer of Stable Diffusion
         3 medium (a start for training), one component (transformer, T5 encoder, autoencoder,
         Qwen2.5-VL, SigLIP), a mask-token embedding; single or index-sharded safetensors
outputs  DST: a model bundle (unialign.json, ...), complete or not there at all

Reads and writes tensor by tensor. Every name and shape must be that of the network.

examples
  unialign convert to-jax UniAlignment models/unialign
  unialign convert to-jax sd3/transformer models/start --components models/unialign
  unialign train --config CONFIG --workdir runs/pretrain --config.init_from=models/start"""
_TO_TORCH = """\
inputs   SRC: a bundle, or a run directory of `unialign train`
outputs  DST: the PyTorch reference's layout (transformer/, text_encoder/, vae/, tokenizer/,
         scheduler/, model_index.json, README.md), or with --layout checkpoint a bare
         consolidated.00-of-01.safetensors

Models with a switch that changes what the weights are (docs/switches.md) are refused.

example
  unialign convert to-torch runs/pretrain exported --dtype bfloat16 --check"""
_EPILOG = """\
examples
  unialign convert to-jax UniAlignment models/unialign
  unialign convert to-torch runs/pretrain exported --check

`unialign convert to-jax --help` and `unialign convert to-torch --help` have the options."""
DTYPES = ("float32", "bfloat16", "float16")
LAYOUTS = ("diffusers", "checkpoint")
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
# What SD3's weights do not have, so that the command line may say it.
SIZES = ("vocab_size", "adapter_hidden", "adapter_out", "null_image_tokens")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the two directions and their options."""
    parser.epilog = _EPILOG
    plain = argparse.RawDescriptionHelpFormatter
    ways = parser.add_subparsers(dest="way", metavar="{to-jax,to-torch}", required=True)

    jax = ways.add_parser("to-jax", epilog=_TO_JAX, formatter_class=plain, help="to a bundle")
    _add_common(jax, "PyTorch weights: a folder or a file", "the bundle's folder")
    add = jax.add_argument
    add("--components", type=Path, metavar="BUNDLE", help="has what SRC has not")
    add("--refer", action="store_true", help="name that bundle in place of copying from it")
    add("--mask-token", type=Path, metavar="FILE", help="embedding for the text encoder's table")
    add("--tokenizer", type=Path, metavar="FILE", help="a tokenizer.json (default: that of SRC)")
    add("--heads", type=int, metavar="N", help="of a transformer without a config.json")
    add("--seed", type=int, default=0, help="of what SRC has not and must be drawn (default: 0)")
    for name in SIZES:
        help_ = f"of a start from SD3 (default: as published), field {name}"
        add(f"--{name.replace('_', '-')}", type=int, metavar="N", help=help_)

    torch = ways.add_parser("to-torch", epilog=_TO_TORCH, formatter_class=plain, help="to PyTorch")
    _add_common(torch, "a bundle or a run directory", "the folder to write")
    add = torch.add_argument
    add("--weights", choices=("ema", "raw"), default="ema", help="moving average or last weights")
    add("--step", type=int, metavar="N", help="a saved step (default: the newest)")
    add("--layout", choices=LAYOUTS, default="diffusers", help="whole folder, or bare checkpoint")
    add("--dtype", choices=DTYPES, help="of the tensors (default: as stored)")
    add("--max-shard-size", type=size, metavar="SIZE", default=size("5GB"), help="default: 5GB")
    add("--without-adapters", action="store_true", help="leave out what only training needs")
    add("--name", help="of the model in the README (default: that of SRC)")


def _add_common(parser: argparse.ArgumentParser, source: str, destination: str) -> None:
    add = parser.add_argument
    add("source", type=Path, metavar="SRC", help=source)
    add("destination", type=Path, metavar="DST", help=destination)
    add("--overwrite", action="store_true", help="replace what an earlier call wrote to DST")
    add("--dry-run", action="store_true", help="say what SRC is, write nothing")
    add("--check", action="store_true", help="compare outputs of PyTorch and JAX (needs PyTorch)")
    add("--json", action="store_true", help="print one JSON object in place of sentences")


def size(text: str) -> int:
    """`5GB`, `500MB` or a number of bytes.

    Raises:
      argparse.ArgumentTypeError: anything else.
    """
    number, unit = text.strip().upper(), 1
    for name, factor in _UNITS.items():
        if number.endswith(name):
            number, unit = number.removesuffix(name), factor
    try:
        found = int(float(number) * unit)
    except (ValueError, OverflowError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 5GB") from error
    if found < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 5GB")
    return found


def run(args: argparse.Namespace, extra: Sequence[str]) -> int:
    """Converts and says what was done.

    Returns:
        0.

    Raises:
        UserError: see `convert.recognise`, `convert.to_jax`, `convert.to_torch`.
    """
    del extra
    from unialign_jax.bundle.contents import DESCRIPTION
    from unialign_jax.bundle.folder import check_destination
    from unialign_jax.convert.to_torch import MARKER, WHAT

    _check_paths(args)
    if not args.dry_run:
        marker, what = (DESCRIPTION, "bundle") if args.way == "to-jax" else (MARKER, WHAT)
        check_destination(args.destination.expanduser(), args.overwrite, marker, what)
    begin = time.monotonic()
    report = _to_jax(args) if args.way == "to-jax" else _to_torch(args)
    report["peak_rss_bytes"] = _peak_memory()
    report["seconds"] = round(time.monotonic() - begin, 2)
    if args.json:
        print(json.dumps(report))
    elif not args.dry_run:
        gib, peak = report["bytes"] / 2**30, report["peak_rss_bytes"] / 2**30
        print(
            f"{report['tensors']:,} tensors, {gib:.2f} GiB in {report['seconds']:.1f} s, "
            f"{peak:.2f} GiB of memory at most -> {args.destination}"
        )
    return 0


def _check_paths(args: argparse.Namespace) -> None:
    """Refuses a destination that is, holds or lies in what is read."""
    final = args.destination.expanduser().resolve()
    components = getattr(args, "components", None)
    if getattr(args, "refer", False) and components is None:
        raise UsageError("--refer names the bundle of --components; say which.")
    for path in (args.source, components):
        read = None if path is None else path.expanduser().resolve()
        if read and read.exists() and (read.is_relative_to(final) or final.is_relative_to(read)):
            raise UsageError(f"{args.destination}: {path} is read. Name another destination.")


def _to_jax(args: argparse.Namespace) -> dict[str, Any]:
    from unialign_jax.convert.recognise import recognise
    from unialign_jax.convert.to_jax import open_components, to_jax, total_bytes
    from unialign_jax.sampling.exporting import open_source

    source = args.source.expanduser()
    sizes = {name: getattr(args, name) for name in SIZES if getattr(args, name) is not None}
    found = recognise(source, heads=args.heads, sizes=sizes, seed=args.seed)
    if sizes and "transformer" not in found.parts:
        raise UsageError(f"{', '.join(sizes)}: {source} has no transformer.")
    report = _found(found)
    if not args.json:
        _describe(source, found)
    if not args.dry_run:
        with progress_bar("bytes converted") as (start, advance):
            start(total_bytes(found))
            to_jax(
                found,
                args.destination,
                vector=args.mask_token,
                components=None if args.components is None else open_components(args.components),
                refer=args.refer,
                tokenizer=args.tokenizer,
                overwrite=args.overwrite,
                source=source.name,
                progress=advance,
            )
        if args.check:
            ours = dict(open_source(args.destination.expanduser()).leaves)
            if args.mask_token is not None:
                del ours["text_encoder"]  # its table is not that of SRC any more
            report["check"] = _check(ours, source, args.json)
    return report


def _found(found: Found) -> dict[str, Any]:
    tensors = [t for part in found.parts.values() for t in part.tensors.values()]
    return {
        "recognised": found.kind,
        "tensors": len(tensors),
        "bytes": sum(part.size for part in found.parts.values()),
        "missing": [],
        "unexpected": found.notes("dropped"),
        "initialised": found.notes("initialised"),
    }


def _describe(source: Path, found: Found) -> None:
    print(f"{source}: {found.sentence}")
    for name, part in found.parts.items():
        dtypes = ", ".join(sorted({tensor.dtype.name for tensor in part.tensors.values()}))
        print(f"  {name}: {len(part.tensors):,} tensors, {part.size / 2**30:.2f} GiB, {dtypes}")
    for what in ("renamed", "dropped", "adapted", "initialised"):
        lines = found.notes(what)
        if lines:
            print(f"  {what}: {len(lines)}")
            for line in lines:
                print(f"    {line}")


def _to_torch(args: argparse.Namespace) -> dict[str, Any]:
    from unialign_jax.convert.to_torch import Options, prepare, to_torch
    from unialign_jax.sampling.exporting import open_source

    source = open_source(args.source.expanduser(), args.weights, step=args.step, name=args.name)
    options = Options(
        layout=args.layout,
        dtype=args.dtype,
        limit=args.max_shard_size,
        adapters=not args.without_adapters,
        overwrite=args.overwrite,
    )
    _, exports = prepare(source, options)
    tensors = sum(len(made.planned) for made in exports.values())
    report: dict[str, Any] = {
        "recognised": "model",
        "tensors": tensors,
        "bytes": sum(made.size for made in exports.values()),
        "missing": [],
        "unexpected": [],
        "initialised": [],
    }
    if not args.json:
        print(f"{args.source}: {source.name}: {', '.join(exports)}")
    if not args.dry_run:
        with progress_bar("bytes written") as (start, advance):
            start(report["bytes"])
            written = to_torch(source, args.destination, options, advance)
        if not args.json:
            counted = f"{written.parameters:,} parameters" if written.parameters else "none"
            print(f"  transformer: {counted}")
        if args.check:
            report["check"] = _check(source.leaves, args.destination, args.json)
    return report


def _check(ours: Mapping[str, Any], theirs: Path, quiet: bool) -> Mapping[str, Any]:
    from unialign_jax.convert.check import compare

    found = compare(ours, theirs.expanduser())
    if not quiet:
        for name, difference in found.items():
            said = "not compared, PyTorch has no counterpart"
            if difference is not None:
                said = f"largest difference {difference:.3g} of the peak, PyTorch against JAX"
            print(f"  {name}: {said}")
    return found


def _peak_memory() -> int:
    """The most memory that this process has held, in bytes."""
    import resource

    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
