"""The command line `unialign`: finds the command, reads its options, turns errors into messages.

Each command is a module of `unialign_jax.commands`, imported only when it is called. Exit codes: 0
good, 1 failed, 2 wrong call, 3 finished but some items failed, 75 saved and stopped on request (run
the same command again).
"""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any, NoReturn

from unialign_jax import __version__
from unialign_jax.errors import Interrupted, UsageError, UserError

COMMANDS = {
    "demo": "draw scenes, train one model on all six tasks, score it, show it; no downloads",
    "prepare": "turn JSONL and images into an ArrayRecord data set that TFDS can read",
    "cache": "compute a teacher's features of a data set once, for the alignment losses",
    "train": "train from a config; the same call again continues where it stopped",
    "plan": "memory, FLOPs, collectives and time of a stage on TPUs that are not here",
    "convert": "PyTorch weights to a bundle, and a trained model to PyTorch, bit for bit",
    "bundle": "a trained model as one folder that can be copied, checked and shipped",
    "sample": "images, edits or captions from a trained model, for a file of jobs",
    "evaluate": "score a trained model, with baselines that need no model",
    "report": "scores, samples and curves of a run as one HTML file",
    "verify": "compare with recorded numbers of the PyTorch reference, tensor by tensor",
    "doctor": "versions, devices, attention backend, what is missing and how to get it",
}

# Their undeclared options (--config.train.steps=100) are fields of the config tree.
CONFIG_COMMANDS = frozenset({"demo", "plan", "train"})

TRACEBACK_SWITCH = "UNIALIGN_TRACEBACK"

_REMEDIES = {
    errno.ENOSPC: "no space left on the device; free some space or name another folder",
    errno.EDQUOT: "the disk quota is used up; free some space or name another folder",
    errno.EACCES: "permission denied; change its permissions or name another path",
    errno.EPERM: "operation not permitted; change its permissions or name another path",
    errno.EROFS: "the file system is read-only; name another folder",
    errno.ENOENT: "no such file or directory",
    errno.ENOTDIR: "a part of this path is a file, not a directory",
    errno.EISDIR: "this is a directory, a file is needed",
    errno.ENAMETOOLONG: "the name is too long for this file system",
}


class _Parser(argparse.ArgumentParser):
    """An argparse parser whose wrong calls arrive as UsageError, with the command's name."""

    def error(self, message: str) -> NoReturn:
        """Raises UsageError in place of argparse's print-and-exit."""
        raise UsageError(f"{message}. See `{self.prog} --help`.")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    Args:
        argv: arguments without the program's name; the process's own when None.

    Raises:
        SystemExit: from `--help` and `--version`, with code 0.
        Exception: errors that are not the user's, and all errors under UNIALIGN_TRACEBACK=1.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    name, args = (argv[0] if argv and argv[0] in COMMANDS else ""), None
    try:
        _, module, args, extra = parse(argv)
        _mark_flags_parsed()
        _plain_warnings(name)
        return int(module.run(args, extra) or 0)
    except KeyboardInterrupt:
        _say(name, "interrupted before there was anything to save; the same command starts again")
        return Interrupted.exit_code
    except BrokenPipeError:
        # The reader (`| head`) went away. Python flushes stdout at exit: give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        message = explain(error, args)
        if message is None or os.environ.get(TRACEBACK_SWITCH) == "1":
            raise
        _say(name, message)
        return error.exit_code if isinstance(error, UserError) else 1


def parse(
    argv: Sequence[str],
) -> tuple[str, ModuleType, argparse.Namespace, list[str]]:
    """Reads a call without running it.

    Returns:
        The command's name, its module, its options, and the config options passed on to it.

    Raises:
        UsageError: no such command or option (names the nearest), a value missing or of wrong type.
        SystemExit: after printing for `--help` and `--version`.
    """
    top = _Parser(
        prog="unialign",
        description="UniAlignment in JAX: one diffusion transformer for images and text.",
        epilog="commands:\n"
        + "\n".join(f"  {name:<9} {purpose}" for name, purpose in COMMANDS.items())
        + "\n\n`unialign COMMAND --help` explains a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="unialign [--help] [--version] COMMAND ...",
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"unialign_jax {__version__}")
    if not argv:
        top.print_help(sys.stderr)
        raise UsageError("a command is needed: " + ", ".join(COMMANDS))
    if argv[0].startswith("-"):
        top.parse_args(argv[:1])
    name = argv[0]
    if name not in COMMANDS:
        raise UsageError(f"there is no command {name!r}. " + _nearest(name, COMMANDS))

    module = importlib.import_module(f"unialign_jax.commands.{name}")
    parser = _Parser(
        prog=f"unialign {name}",
        description=module.HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    args, extra = parser.parse_known_args(list(argv[1:]))
    _refuse_unknown(name, parser, extra)
    return name, module, args, extra


def explain(error: BaseException, args: argparse.Namespace | None = None) -> str | None:
    """A message for an error that a user can mend, None for any other error."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("unialign_jax"):
        return (
            f"the Python package {error.name!r} is missing. `unialign doctor` says how to get it."
        )
    if isinstance(error, FileNotFoundError | PermissionError) and error.errno is None:
        return str(error)
    # Libraries wrap what the system said in errors of their own: follow what they were raised from.
    chain = [error]
    while chain[-1].__cause__ is not None and chain[-1].__cause__ not in chain:
        chain.append(chain[-1].__cause__)
    for cause in chain:
        if isinstance(cause, OSError) and cause.errno in _REMEDIES:
            path = cause.filename2 or cause.filename or _output_folder(args)
            return f"{path}: {_REMEDIES[cause.errno]}. ({TRACEBACK_SWITCH}=1 shows where.)"
        if "No space left on device" in f"{cause} {cause.__context__}":
            return f"{_output_folder(args)}: {_REMEDIES[errno.ENOSPC]}. ({cause})"
    return None


def _refuse_unknown(name: str, parser: argparse.ArgumentParser, extra: Sequence[str]) -> None:
    """Raises UsageError for arguments that neither the parser nor the config tree can take."""
    config_prefixes = ("--config.", "--noconfig.") if name in CONFIG_COMMANDS else ()
    awaits_value = False
    for text in extra:
        if config_prefixes and text.startswith(config_prefixes):
            # `--config.train.steps 100`: the value may follow as an argument of its own.
            awaits_value = text.startswith("--config.") and "=" not in text
        elif awaits_value and not text.startswith("--"):
            awaits_value = False
        else:
            what = text.split("=")[0]
            raise UsageError(f"unrecognised argument {what!r}. " + _nearest(what, _options(parser)))


def _options(parser: argparse.ArgumentParser) -> list[str]:
    """The long options of a parser and of its sub-parsers, sorted."""
    found = set()
    for action in parser._actions:
        found.update(option for option in action.option_strings if option.startswith("--"))
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                found.update(_options(inner))
    return sorted(found)


def _nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"Did you mean {close[0]!r}?" if close else "Known: " + ", ".join(known) + "."


def _output_folder(args: argparse.Namespace | None) -> str:
    """The folder that a command writes to, for errors of the system that carry no path."""
    for field in ("workdir", "out", "output"):
        value = getattr(args, field, None)
        if value is not None:
            return str(value)
    return os.getcwd()


def _plain_warnings(name: str) -> None:
    """Shows warnings meant for the user as a line, without file and source."""
    show = warnings.showwarning

    def showwarning(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: Any
    ) -> None:
        if category is UserWarning or category.__module__.startswith("unialign_jax"):
            _say(name, str(message))
        else:
            show(message, category, filename, lineno, *rest)

    warnings.showwarning = showwarning


def _mark_flags_parsed() -> None:
    """Grain's worker processes read absl's global flags, which refuse to be read unparsed."""
    from absl import flags

    flags.FLAGS.mark_as_parsed()


def _say(name: str, message: str) -> None:
    print(f"unialign {name}: {message}" if name else f"unialign: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
