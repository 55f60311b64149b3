"""Configs: found by name or file, overridden from the command line, turned into dataclasses.

A config is a Python file with `get_config()` (or `get_config(argument)`) that returns an
`ml_collections.ConfigDict`. `photos` names a shipped one, `photos:small` passes `"small"` to its
`get_config`, and `path/to/mine.py` is a file of one's own.

Every key that does not exist is an error that names the nearest one that does, whether it comes
from the command line or from a config file that a dataclass is built from.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import os
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from unialign_jax.config_files import run_file
from unialign_jax.errors import UsageError, UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

T = TypeVar("T")

PACKAGE = Path(__file__).resolve().parent


# ---------------------------------------------------------------------- finding and loading


def config_directories() -> list[Path]:
    """Where named configs live: in the installed package, and beside it in a checkout."""
    return [PACKAGE / "configs", PACKAGE.parent / "configs"]


def available_configs() -> list[str]:
    """The names that `--config` knows, sorted."""
    names = set()
    for directory in config_directories():
        for path in directory.glob("*.py"):
            if not path.stem.startswith("_") and "def get_config" in path.read_text():
                names.add(path.stem)
    return sorted(names)


def find_config(name: str) -> Path:
    """The file behind a config name or path (without its `:argument`).

    Raises:
        UsageError: neither a file nor a shipped config; names the nearest one.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path.resolve()
    if path.suffix == ".py" or len(path.parts) > 1:
        raise UsageError(f"config file not found: {name}")
    for directory in config_directories():
        candidate = directory / f"{name}.py"
        if candidate.is_file():
            return candidate
    known = available_configs()
    raise UsageError(
        f"no config named `{name}`{suggestion(name, known)}. "
        f"Shipped: {', '.join(known) or 'none'}; or give the path of a .py file."
    )


def load_config(name: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Loads a config and applies command-line overrides.

    Args:
        name: `photos`, `photos:argument`, `path/to/file.py` or `path/to/file.py:argument`.
        overrides: arguments like `--config.train.steps=100`.

    Returns:
        The resolved config, locked: neither new keys nor changed types are accepted.

    Raises:
        UsageError: unknown config, unknown key or a value of the wrong type.
        UserError: the file itself fails.
    """
    file_name, _, argument = name.partition(":")
    path = find_config(file_name)
    # A config file is the user's code: whatever it raises is reported with its place.
    try:
        module = run_file(path)
        get_config = getattr(module, "get_config", None)
        if get_config is None:
            raise UserError(f"{path}: has no `get_config()`")
        takes_argument = bool(inspect.signature(get_config).parameters)
        if argument and not takes_argument:
            raise UsageError(f"{path}: `get_config` takes no argument, but `:{argument}` was given")
        config = get_config(argument) if argument else get_config()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: {type(error).__name__}: {error}") from error
    return apply_overrides(config, overrides)


def apply_overrides(config: Any, arguments: Sequence[str]) -> ConfigDict:
    """Applies `--config.a.b=value` arguments to a copy of `config` and locks it.

    Values are parsed by the type of the field they replace (`ml_collections.config_flags` on
    flags of its own, so that the process's absl flags stay untouched).

    Raises:
        UsageError: a key that does not exist, a value that does not parse, a stray argument.
    """
    from absl import flags
    from ml_collections import ConfigDict, config_flags

    config = ConfigDict(config).copy_and_resolve_references()
    arguments = list(arguments)
    known = _all_keys(config)
    for key in _override_keys(arguments):
        if key not in known:
            raise UsageError(f"unknown config key `{key}`{suggestion(key, known)}.")
        value: Any = config
        for part in key.split("."):
            value = value[part]
        if isinstance(value, ConfigDict):
            inside = ", ".join(f"{key}.{name}" for name in value)
            raise UsageError(f"config key `{key}` is a section; set one of: {inside}.")

    command = ["config", *arguments]
    values = flags.FlagValues()
    try:
        holder = config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, lock_config=True, sys_argv=command
        )
        rest = values(command)[1:]
    except (flags.Error, ValueError, TypeError) as error:
        raise UsageError(_explain(error, config, arguments)) from error
    if rest:
        raise UsageError(
            f"unexpected argument `{rest[0]}`; a config key is set by --config.KEY=VALUE."
        )
    return holder.value


def _override_keys(arguments: Iterable[str]) -> list[str]:
    """`train.steps` of each `--config.train.steps[=...]` and `--noconfig.x.y`."""
    keys = []
    for argument in arguments:
        name = argument.split("=", 1)[0]
        if not name.startswith("-"):
            continue
        name = name.lstrip("-")
        name = name.removeprefix("no") if name.startswith("noconfig.") else name
        if not name.startswith("config."):
            raise UsageError(f"unknown option `{argument}`; a config key is --config.KEY=VALUE.")
        keys.append(name.removeprefix("config."))
    return keys


def _explain(error: Exception, config: Any, arguments: Sequence[str]) -> str:
    """Names the field whose value failed to parse and the type that it takes."""
    flat = flatten(to_plain(config))
    for index, argument in enumerate(arguments):
        name, equals, text = argument.partition("=")
        key = name.lstrip("-").removeprefix("config.")
        if not equals:
            text = arguments[index + 1] if index + 1 < len(arguments) else ""
        if key in flat and f"config.{key}" in str(error):
            kind = type(flat[key]).__name__
            return f"config key `{key}` takes a value of type {kind}, got {text!r}."
    return f"cannot apply the config arguments {' '.join(arguments)}: {error}"


# ---------------------------------------------------------------------- plain trees and files


def to_plain(config: Any) -> dict[str, Any]:
    """A config as nested dicts of JSON values: tuples become lists."""
    values = config.to_dict() if hasattr(config, "to_dict") else config

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): plain(inner) for key, inner in value.items()}
        if isinstance(value, (tuple, list)):
            return [plain(inner) for inner in value]
        return value

    return plain(values)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def save_json(config: Any, path: str | os.PathLike[str]) -> None:
    """Writes the resolved config; the old file stays whole until the new one is complete."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(to_plain(config), indent=2) + "\n")
    os.replace(partial, path)


def load_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a config that `save_json` wrote, as nested dicts.

    Raises:
        UserError: no such file, or not a JSON object.
    """
    try:
        tree = json.loads(Path(path).read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such config; is this a run directory?") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a config: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: cannot be read as a config: not a JSON object")
    return tree


@dataclasses.dataclass(frozen=True)
class Difference:
    """A key in which two configs differ; a side that lacks the key shows `(absent)`."""

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.before!r} -> {self.after!r}"


class _Absent:
    def __repr__(self) -> str:
        return "(absent)"


ABSENT = _Absent()


def diff(before: Any, after: Any) -> list[Difference]:
    """The keys in which two configs differ, sorted. Tuples and lists compare equal."""
    left, right = flatten(to_plain(before)), flatten(to_plain(after))
    return [
        Difference(key, left.get(key, ABSENT), right.get(key, ABSENT))
        for key in sorted(left.keys() | right.keys())
        if key not in left or key not in right or left[key] != right[key]
    ]


# ---------------------------------------------------------------------- dataclasses


def to_dataclass(cls: type[T], values: Any, *, where: str, ignore: Sequence[str] = ()) -> T:
    """Builds a frozen config dataclass from a section of a config.

    Args:
        cls: a dataclass whose fields have plain types (bool, int, float, str, tuple, `X | None`).
        values: a mapping or `ConfigDict` with (some of) its fields; lists become tuples.
        where: the section's name in error messages, e.g. `model`.
        ignore: keys of the section that belong to somebody else.

    Raises:
        UserError: an unknown key (the nearest is named), a missing one, or a value of the wrong
            type; also whatever `cls` itself refuses with a ValueError.
    """
    tree = dict(values.items())
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    arguments = {}
    for key, value in tree.items():
        if key in ignore:
            continue
        if key not in fields:
            known = [f"{where}.{name}" for name in fields]
            full = f"{where}.{key}"
            raise UserError(f"unknown config key `{full}`{suggestion(full, known)}.")
        arguments[key] = _checked(value, hints[key], f"{where}.{key}")
    for name, field in fields.items():
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if required and name not in arguments:
            raise UserError(f"config key `{where}.{name}` is missing.")
    try:
        return cls(**arguments)
    except ValueError as error:
        raise UserError(f"config section `{where}`: {error}") from error


def _checked(value: Any, hint: Any, key: str) -> Any:
    """`value` as `hint` wants it, or a UserError that names the key and the type."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        choices = typing.get_args(hint)
        if value is None and type(None) in choices:
            return None
        kinds = [choice for choice in choices if choice is not type(None)]
        if len(kinds) == 1:
            return _checked(value, kinds[0], key)
        return value
    if origin is typing.Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise UserError(f"config key `{key}` is one of {', '.join(map(str, choices))}.")
        return value
    kind = origin or hint
    if isinstance(kind, type) and issubclass(kind, Mapping) and hasattr(value, "items"):
        return dict(value.items())
    if kind is tuple and isinstance(value, (list, tuple)):
        return tuple(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in (bool, int, float, str, tuple):
        wrong = not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
        if wrong:
            raise UserError(
                f"config key `{key}` takes a value of type {kind.__name__}, got {value!r}."
            )
    return value


# ---------------------------------------------------------------------- the nearest key


def _all_keys(config: Any) -> list[str]:
    """Dotted names of all sections and fields."""
    keys = []
    for key, value in config.items():
        keys.append(key)
        if hasattr(value, "items"):
            keys += [f"{key}.{inner}" for inner in _all_keys(value)]
    return keys


def suggestion(key: str, known: Iterable[str]) -> str:
    """`; the nearest is ...`, by the whole dotted name, else by its last part."""
    known = list(known)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.7)
    if not near:
        last = {name.rsplit(".", 1)[-1]: name for name in known}
        near = [last[n] for n in difflib.get_close_matches(key.rsplit(".", 1)[-1], last, n=1)]
    return f"; the nearest is `{near[0]}`" if near else ""
