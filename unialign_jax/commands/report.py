"""`unialign report`: curves, scores and samples of a run in one HTML file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from unialign_jax.errors import UsageError

HELP = "write what a run has come to as one HTML file: scores, samples, curves"

_EPILOG = """\
inputs   --run: a run directory of `unialign train`, a bundle or the name of one; --scores: what
         `unialign evaluate scenes` wrote (without it the report has curves and sample grids alone)
outputs  one HTML file that needs no network and no script; with --gallery also a contact sheet

example  unialign report --run runs/scenes --scores runs/scenes/scenes_scores"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.epilog = _EPILOG
    parser.add_argument("--run", type=Path, required=True, help="a run directory, bundle or name")
    parser.add_argument("--scores", type=Path, metavar="DIR", help="with scores.json and shown/")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="default: RUN/report.html (of a bundle: here)"
    )
    parser.add_argument(
        "--gallery", type=Path, metavar="PNG", help="a contact sheet of the samples"
    )
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="JSON",
        help="a loss curve to lay under the run's (default: the one kept for its config)",
    )


def run(args: argparse.Namespace, extra: Sequence[str]) -> int:
    """Writes the report.

    Returns:
        0.

    Raises:
        UserError: no run, no scores, or an output that cannot be written.
    """
    del extra
    from unialign_jax.bundle.contents import is_bundle
    from unialign_jax.bundle.shipped import find_model
    from unialign_jax.reporting.diary import Diary
    from unialign_jax.reporting.gallery import draw_gallery
    from unialign_jax.reporting.material import gather
    from unialign_jax.reporting.report import write_report

    if args.gallery and not args.scores:
        raise UsageError("--gallery needs --scores: it shows what was scored")
    # A demo keeps its run in a folder of this name, beside what it chose and called.
    diary = Diary.load(args.run.absolute().parent) if args.run.name == "run" else None
    material = gather(args.run, args.scores, diary.making() if diary else None, args.reference)
    bundled = is_bundle(find_model(args.run))
    out = args.out or (Path() if bundled else args.run) / "report.html"
    write_report(material, out)
    print(f"report: {out}")
    if args.gallery:
        assert material.scores is not None
        draw_gallery(material.scores, material.shown, args.gallery)
        print(f"gallery: {args.gallery}")
    return 0
