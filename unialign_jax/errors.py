"""Errors that are a user's to mend: the command line prints them without a traceback."""

from __future__ import annotations

from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend. The message says what, where (file, record, key) and how."""

    exit_code = 1


class UsageError(UserError):
    """A wrong call: an unknown option, config key or combination of arguments."""

    exit_code = 2


class Interrupted(UserError):
    """Work was saved and stopped on request; running the same command again continues it."""

    exit_code = 75


def bullets(lines: Iterable[str], limit: int = 20) -> str:
    """An indented list for error messages, cut after `limit` lines."""
    lines = list(lines)
    shown = [f"  {line}" for line in lines[:limit]]
    if len(lines) > limit:
        shown.append(f"  ... and {len(lines) - limit} more")
    return "\n".join(shown)
