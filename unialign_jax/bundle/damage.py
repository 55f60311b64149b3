"""Checkpoint files that cannot be read or written: how it is noticed, and what is said.

The file format notices a cut file, not a changed byte, so every tree is saved with a fingerprint.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unialign_jax.errors import UserError, bullets


class DamagedCheckpoint(Exception):
    """A checkpoint that cannot be read or whose arrays are not those that were written."""


class DamageWarning(UserWarning):
    """A damaged checkpoint was passed over for an older one."""


def fingerprint(tree: Any) -> int:
    """A checksum of a tree of arrays that does not depend on how they are sharded."""
    leaves = jax.tree.leaves(tree)
    sums = np.asarray(_bit_sums(leaves)) if leaves else np.zeros(0, np.uint32)
    return zlib.crc32(sums.astype("<u4").tobytes())


@jax.jit
def _bit_sums(leaves: list[jax.Array]) -> jax.Array:
    """Per leaf, the sum of its bit patterns modulo 2^32."""

    def bits(leaf: jax.Array) -> jax.Array:
        unsigned = jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")
        return jnp.sum(jax.lax.bitcast_convert_type(leaf, unsigned), dtype=jnp.uint32)

    return jnp.stack([bits(leaf) for leaf in leaves])


def first_whole(directory: Path, steps: list[int], load: Any) -> tuple[Any, list[int]] | None:
    """`load` of the newest step that can be read, and the damaged steps before it."""
    damaged: list[int] = []
    reasons: list[str] = []
    for step in sorted(steps, reverse=True):
        try:
            return load(step), damaged
        except DamagedCheckpoint as error:
            damaged.append(step)
            reasons.append(f"{directory / str(step)}: {error}")
            text = f"passing over a damaged checkpoint: {reasons[-1]}"
            warnings.warn(text, DamageWarning, stacklevel=3)
    if damaged:
        raise UserError(
            f"no checkpoint can be read:\n{bullets(reasons)}\n"
            "Bring back a copy, or delete them to start again."
        )
    return None


@contextlib.contextmanager
def damage() -> Iterator[None]:
    """Turns whatever Orbax raises for unreadable files into DamagedCheckpoint.

    Its errors for one cause are of many types, so any is caught, except those that say nothing
    about the files: no memory, no permission.
    """
    try:
        yield
    except (MemoryError, PermissionError, UserError):
        raise
    except Exception as error:
        reason = _reason(error)
        if "out of memory" in reason.lower():
            raise
        raise DamagedCheckpoint(reason) from error


def _reason(error: BaseException) -> str:
    """The first line of the innermost cause."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


def set_aside(path: Path) -> None:
    """Renames a damaged checkpoint to `STEP.damaged`, or the next free name like it."""
    target = path.with_name(f"{path.name}.damaged")
    number = 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.damaged-{number}")
    path.rename(target)


@contextlib.contextmanager
def disk_errors(directory: Path) -> Iterator[None]:
    """Turns failures to write into a UserError that names the directory."""
    try:
        yield
    except (OSError, ValueError) as error:
        # Tensorstore reports the system's error as the text of a ValueError.
        text = f"{_reason(error)} {error}"
        full = "No space left" in text or "quota" in text
        if not isinstance(error, OSError) and not full and "os_error_code" not in text:
            raise
        reason = "no space left on the device" if full else _reason(error)
        raise UserError(
            f"{directory}: a checkpoint cannot be written: {reason}. Earlier ones are untouched; "
            f"{'make room' if full else 'check the disk'} and run the same command again."
        ) from error


def quiet_orbax() -> None:
    """Drops Orbax's own reports of failures: each is raised too, and reported once from there."""
    logger = logging.getLogger("absl")
    if not any(isinstance(f, _OrbaxReports) for f in logger.filters):
        logger.addFilter(_OrbaxReports())


class _OrbaxReports(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname
