"""A folder that is complete under its name, or not there at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from unialign_jax.bundle.damage import disk_errors
from unialign_jax.errors import UserError


@contextlib.contextmanager
def new_folder(final: Path, overwrite: bool, marker: str, what: str) -> Iterator[Path]:
    """Gives a folder to fill beside `final`, and renames it once the block is through.

    Args:
        final: absolute; what stands there is replaced as `check_destination` says.
        overwrite: replaces a folder of the same kind.
        marker: a file that tells folders of this kind.
        what: the kind, for messages.

    Raises:
        UserError: the place is taken, or the disk is full.
    """
    check_destination(final, overwrite, marker, what)
    partial = final.with_name(f".{final.name}.partial-{os.getpid()}")
    with disk_errors(final):
        try:
            # Of a killed process of the same number.
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            yield partial
            # Somebody else may have put something there meanwhile.
            check_destination(final, overwrite, marker, what)
            _put_in_place(partial, final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def check_destination(final: Path, overwrite: bool, marker: str, what: str) -> None:
    """Refuses to write over what is there, or over anything of another kind.

    Raises:
        UserError: it exists; says what to do.
    """
    final = final.absolute()
    above = next(folder for folder in final.parents if folder.exists())
    if final.name == ".." or not above.is_dir() or (final.is_symlink() and not final.exists()):
        where = above if not above.is_dir() else final
        raise UserError(f"{where}: is no place for a folder. Name another destination.")
    if not final.exists() or (final.is_dir() and not any(final.iterdir())):
        return
    if not (final / marker).is_file():
        raise UserError(f"{final}: exists and is no {what}. Name another destination.")
    if not overwrite:
        raise UserError(
            f"{final}: exists. Name another destination, or replace it with --overwrite."
        )


def _put_in_place(partial: Path, final: Path) -> None:
    if not final.exists():
        partial.rename(final)
        return
    aside = final.with_name(f".{final.name}.replaced-{os.getpid()}")
    final.rename(aside)
    partial.rename(final)
    shutil.rmtree(aside)
