"""Errors that are a user's to mend: the command line prints them without a traceback."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can mend. The message says what, where (file, record, key) and how."""

    exit_code = 1


class UsageError(UserError):
    """A wrong call: an unknown option, config key or combination of arguments."""

    exit_code = 2


class Interrupted(UserError):
    """Work was saved and stopped on request; running the same command again continues it."""

    exit_code = 75
