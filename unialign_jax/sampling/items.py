"""The items of a sampling job, from a JSONL file or from the command line.

| task | text | images |
|---|---|---|
| `generate` | `prompt` | |
| `caption` | | `image` |
| `answer` | `question` | `image` |
| `edit`, `perceive` | `instruction` | `image` |
| `compose` | `instruction` | `images`, 1 to 3 |

`id` and `seed` are optional, other keys are left alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unialign_jax.data.tasks import Task
from unialign_jax.errors import UserError
from unialign_jax.sampling.requests import INPUTS, check_seed
from unialign_jax.sampling.writers import FAILED, Result, as_bytes

SLUG_LENGTH = 40


@dataclasses.dataclass(frozen=True)
class Item:
    """One thing to sample.

    Attributes:
      index: its place in the job, from 0; decides which shard makes it.
      where: file and line, for messages.
      id: unique in the job.
      text: prompt, instruction or question; "" where the task takes none.
      images: paths as they were given.
      seed: of its own.
      error: why it cannot be made, else None; such items only get a line in the results.
    """

    index: int
    where: str
    id: str
    text: str = ""
    images: tuple[str, ...] = ()
    seed: int | None = None
    error: str | None = None

    def failed(self, task: Task, error: str | None = None) -> Result:
        """Its line in the results when it cannot be made."""
        message = self.error if error is None else f"{self.where}: {error}"
        return Result(self.id, str(task), FAILED, error=message, seed=self.seed)


def read_items(path: Path, task: Task, seed: int = 0, limit: int | None = None) -> list[Item]:
    """Reads a JSONL file.

    Args:
      path: the file; blank lines do not count.
      task: what the items are for; decides which keys are read.
      seed: items without a seed get one made of this and their id.
      limit: the number of items read; None reads all.

    Raises:
      UserError: the file cannot be read, is empty, or no line of it is JSON.
    """
    try:
        # Not splitlines: a JSON text may hold other line ends, such as U+2028.
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text ({error}).") from error
    numbered = [(n, line) for n, line in enumerate(lines, start=1) if line.strip()][:limit]
    if not numbered:
        raise UserError(f"{path}: has no items; each line is one, as a JSON object.")
    parsed = [(number, _parse(line)) for number, line in numbered]
    if not any(isinstance(line, dict) for _, line in parsed):
        raise UserError(
            f"{path}:{parsed[0][0]}: {parsed[0][1]}. No line of the file is; each one is an item, "
            f'such as {{"id": "a", "{INPUTS[task].text or "image"}": "..."}}.'
        )
    first: dict[str, int] = {}
    items = []
    for index, (number, line) in enumerate(parsed):
        where = f"{path.name}:{number}"
        name = f"{number:06d}"
        try:
            if isinstance(line, str):
                raise UserError(line)
            name = _id(line, name)
            if name in first:
                raise UserError(f"`id` {name!r} is also that of line {first[name]}")
            item = Item(index, where, name, *_fields(line, task), _seed(line, seed, name))
        except UserError as error:
            # Lines that are no items need a name of their own in the results.
            while name in first:
                name = f"{name}#{number}"
            item = Item(index, where, name, error=f"{where}: {error}")
        first[item.id] = number
        items.append(item)
    return items


def quick_items(
    task: Task, texts: Sequence[str], images: Sequence[str], seed: int, settings: str = ""
) -> list[Item]:
    """Items of a call without a file: one per text and image; `compose` takes all images at once.

    The id is made of the text and of all that decides the result, `settings` included.
    """
    together = INPUTS[task].images[1] > 1 or not images
    groups = [tuple(images)] if together else [(name,) for name in images]
    rows = [(text, names) for text in texts for names in groups]
    items = []
    for index, (text, names) in enumerate(rows):
        parts = json.dumps([task, text, names, seed, index, settings])
        digest = hashlib.sha256(parts.encode()).hexdigest()[:8]
        words = text or (Path(names[0]).stem if names else "")
        slug = re.sub(r"[^a-z0-9]+", "-", words.lower())[:SLUG_LENGTH].strip("-") or str(task)
        # Several items of a call start from different noise, a single one from that of its seed.
        own = seed if len(rows) == 1 else derived_seed(seed, str(index))
        items.append(Item(index, "command line", f"{slug}-{digest}", text, names, own))
    return items


def derived_seed(seed: int, name: str) -> int:
    """The seed of an item that has none: 32 bits of a hash of the job's seed and the item's id."""
    return int.from_bytes(hashlib.sha256(as_bytes(f"{seed}/{name}")).digest()[:4], "big")


def _parse(line: str) -> dict[str, Any] | str:
    """A line as a JSON object, or why it is not one."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"not JSON ({error})"
    return value if isinstance(value, dict) else "not a JSON object"


def _id(line: dict[str, Any], default: str) -> str:
    value = line.get("id", default)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or str(value).strip() == "":
        raise UserError(f"`id` is {value!r:.60}: a text or whole number")
    return str(value)


def _seed(line: dict[str, Any], seed: int, name: str) -> int:
    if "seed" not in line:
        return derived_seed(seed, name)
    try:
        return check_seed(line["seed"])
    except UserError as error:
        raise UserError(f"`seed`: {error}") from error


def _fields(line: dict[str, Any], task: Task) -> tuple[str, tuple[str, ...]]:
    """Text and image paths of a line."""
    takes = INPUTS[task]
    text = ""
    if takes.text is not None:
        if takes.text not in line:
            raise UserError(f"no `{takes.text}`, which {task} needs (keys: {', '.join(line)})")
        text = line[takes.text]
        if not isinstance(text, str):
            raise UserError(f"`{takes.text}` is {text!r:.60}: a text")
    least, most = takes.images
    if not most:
        return text, ()
    key = "images" if "images" in line else "image"
    names = line.get(key)
    if names is None:
        wanted = "images" if most > 1 else "image"
        raise UserError(f"no `{wanted}`, which {task} needs (keys: {', '.join(line)})")
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(n, str) and n for n in names):
        raise UserError(f"`{key}` is {names!r:.60}: a path or a list of paths")
    if not least <= len(names) <= most:
        wanted = str(least) if least == most else f"{least} to {most}"
        raise UserError(f"`{key}` has {len(names)} path(s), {task} takes {wanted}")
    return text, tuple(names)
