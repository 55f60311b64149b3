"""What a sampling job leaves on disk: images and `results.jsonl`, whole at any moment.

An image is written under a temporary name and renamed; its line is appended after it. A job that
was killed leaves at most a torn last line, which the next start drops. Shards of one job write
files of their own (`results-00001-of-00004.jsonl`), and the last one to finish joins them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from unialign_jax.errors import UserError

RESULTS = "results.jsonl"
SETTINGS = "job.json"
IMAGES = "images"
OK, FAILED = "ok", "failed"
LONGEST_NAME = 100
_SHARD_FILES = "results-*-of-*.jsonl"


@dataclasses.dataclass(frozen=True)
class Result:
    """One line of `results.jsonl`.

    Attributes:
      id: of the item.
      task: what was asked for.
      status: "ok" or "failed".
      outputs: image files, relative to the output folder.
      text: the caption or answer; None where the task makes images.
      error: why it failed; None where it did not.
      seconds: the time of its batch divided by the items in it.
      seed: with which the item can be made again; None where the item was not understood.
    """

    id: str
    task: str
    status: str
    outputs: tuple[str, ...] = ()
    text: str | None = None
    error: str | None = None
    seconds: float = 0.0
    seed: int | None = None

    def to_json(self) -> str:
        """The line, without its end."""
        fields = dataclasses.asdict(self)
        return json.dumps({**fields, "seconds": round(self.seconds, 4)}, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> Result | None:
        """A line as a result, None where it is not one (for example torn)."""
        try:
            fields = json.loads(line)
            return cls(**{**fields, "outputs": tuple(fields["outputs"])})
        except (ValueError, TypeError, KeyError):
            return None


class ResultsFile:
    """The results of one shard, appended as they come.

    Opening it drops torn lines and the lines of items that will be tried again.

    Args:
      directory: the output folder.
      shard: (i, n), this process and the number of processes.
      keep: whether a result found there stays.

    Raises:
      UserError: the folder cannot be written.
    """

    def __init__(self, directory: Path, shard: tuple[int, int] = (0, 1), keep: Any = None):
        index, count = shard
        name = RESULTS if count == 1 else f"results-{index:05d}-of-{count:05d}.jsonl"
        self._path = directory / name
        kept = [r for r in read_results(self._path) if keep is None or keep(r)]
        try:
            write_bytes(self._path, _lines(kept))
            self._file = open(self._path, "ab")  # noqa: SIM115 - closed by `close`
        except OSError as error:
            raise UserError(
                f"{directory}: cannot be written ({error.strerror or error}). Use another --out, "
                "or make room and check its permissions."
            ) from error

    def append(self, results: Iterable[Result]) -> None:
        """Adds lines and hands them to the disk."""
        self._file.write(_lines(results))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_results(path: Path) -> list[Result]:
    """The results of one file, without lines that are none; empty where there is no file."""
    if not path.is_file():
        return []
    lines = path.read_bytes().decode("utf-8", errors="replace").split("\n")
    return [result for line in lines if (result := Result.from_json(line)) is not None]


def read_all(directory: Path) -> dict[str, Result]:
    """By id, what all shards of a job have left so far; a good result wins over a failed one."""
    found: dict[str, Result] = {}
    for path in [directory / RESULTS, *sorted(directory.glob(_SHARD_FILES))]:
        for result in read_results(path):
            if result.id not in found or found[result.id].status != OK:
                found[result.id] = result
    return found


def is_done(result: Result, directory: Path) -> bool:
    """Whether a result is good and its files are there."""
    return result.status == OK and all((directory / name).is_file() for name in result.outputs)


def join_results(directory: Path, ids: Sequence[str]) -> bool:
    """Rewrites `results.jsonl` in the order of `ids`, one line each, once all of them are there.

    Results of other ids follow. Several shards may do this at the same time: they write the same.

    Returns:
      Whether all were there.
    """
    found = read_all(directory)
    if any(name not in found for name in ids):
        return False
    ordered = [found.pop(name) for name in ids]
    write_bytes(directory / RESULTS, _lines([*ordered, *found.values()]))
    return True


def recorded_settings(directory: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """What the first start of a job in this folder recorded; None where there was none.

    Args:
      directory: the output folder.
      settings: JSON values that the results depend on.

    Raises:
      UserError: the folder belongs to a call with other settings.
    """
    path = directory / SETTINGS
    if not path.is_file():
        return None
    try:
        recorded = dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}). Use another --out.") from error
    changed = [
        f"{key} was {recorded.get(key)!r} and is {value!r}"
        for key, value in settings.items()
        if recorded.get(key) != value
    ]
    if changed:
        raise UserError(
            f"{directory} holds the results of another call: {'; '.join(changed)}. "
            "Use another --out, or delete that one."
        )
    return recorded


def record_settings(directory: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Binds a folder to settings; the first of several processes decides.

    Returns:
      The settings that are recorded: these, or those of a process that was faster.
    """
    path = directory / SETTINGS
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    write_bytes(temporary, (json.dumps(settings, indent=1) + "\n").encode())
    try:
        os.link(temporary, path)
    except FileExistsError:
        return dict(json.loads(path.read_text("utf-8")))
    except OSError:  # a file system without hard links
        os.replace(temporary, path)
        return settings
    finally:
        temporary.unlink(missing_ok=True)
    return settings


def write_image(directory: Path, item: str, image: Any) -> str:
    """Writes the PIL image of an item; returns its path relative to `directory`."""
    name = f"{IMAGES}/{file_name(item)}.png"
    write_image_file(directory / name, image)
    return name


def write_image_file(path: Path, image: Any) -> None:
    """Writes a PIL image as PNG, whole or not at all."""
    from unialign_jax.data import images

    write_bytes(path, images.encode(image))


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file under a temporary name and renames it: readers see all of it or nothing.

    Raises:
      OSError: the folder cannot be written or the disk is full.
    """
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def file_name(item: str) -> str:
    """A file name for an id: it never leads out of its folder, and two ids never share one."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", item).lstrip(".")[:LONGEST_NAME]
    if plain and plain == item.lower():
        return plain
    # Something was replaced, or a file system that ignores case could mix it up with another.
    return f"{plain or 'item'}-{hashlib.sha256(as_bytes(item)).hexdigest()[:10]}"


def as_bytes(text: str) -> bytes:
    """UTF-8; half a surrogate pair, which JSON can spell but UTF-8 cannot, stays an escape."""
    return text.encode("utf-8", errors="backslashreplace")


def _lines(results: Iterable[Result]) -> bytes:
    return as_bytes("".join(result.to_json() + "\n" for result in results))
