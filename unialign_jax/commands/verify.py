"""`unialign verify`: a directory of goldens against this implementation."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

HELP = "compare this implementation with recorded numbers of the PyTorch reference"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.description = (
        "Runs every case that DIR/inventory.json lists in the groups this program covers, and "
        "compares every recorded output. Exit 0 when all hold, 1 when one is over its tolerance or "
        "an array of a covered group was not checked. Example: unialign verify tests/goldens"
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="directory of goldens")
    parser.add_argument(
        "--group", action="append", help="check this group only; may be repeated (default: all)"
    )
    parser.add_argument("--all", action="store_true", help="print every comparison, not the worst")
    parser.add_argument("--json", action="store_true", help="print a JSON list of comparisons")


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """Prints the comparisons; returns the exit code."""
    from unialign_jax.parity.verify import as_json, table, verify_directory

    verdict = verify_directory(args.directory, args.group)
    if args.json:
        json.dump(as_json(verdict), sys.stdout, indent=1)
        print()
    else:
        print(table(verdict, every_row=args.all))
    return 0 if verdict.ok else 1
