"""The reference's JSONL lines (uniAlignment.md 2.8) as records.

| format | keys |
|---|---|
| `t2i` | `image[0]`, `conversations[0].value` (caption) |
| `edit` | `image` = [source, target], `instruction`, `conversations[0].value` (caption of target) |
| `compose` | `original_images` (1 to 3), `generated_images[0]`, `edit_prompt`, `caption` |
| `perceive` | as `edit`; `map_kind`; `source_caption` where the source has a caption of its own |
| `answer` | `image[0]`, `conversations` of `from` (human, gpt) and `value` |
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from unialign_jax.data.prepared import stream_name
from unialign_jax.data.tasks import MAX_CONDITIONS, BadItem, Record, Task, Turn

FORMATS: dict[str, Task | None] = {
    "auto": None,
    "t2i": Task.GENERATE,
    "edit": Task.EDIT,
    "compose": Task.COMPOSE,
    "perceive": Task.PERCEIVE,
    "answer": Task.ANSWER,
}
MAX_IMAGE_BYTES = 1 << 28
# How many images of each list have a part in the record.
_ROOM: dict[Task, tuple[tuple[str, int], ...]] = {
    Task.GENERATE: (("image", 1),),
    Task.ANSWER: (("image", 1),),
    Task.EDIT: (("image", 2),),
    Task.PERCEIVE: (("image", 2),),
    Task.COMPOSE: (("original_images", MAX_CONDITIONS), ("generated_images", 1)),
}
# What surrounds the composing prompts in the published lines.
_PROMPT_JUNK = ' \\"'
_BOM = b"\xef\xbb\xbf"


@dataclasses.dataclass(frozen=True)
class JsonlOptions:
    """How lines are read.

    Attributes:
        format: a key of `FORMATS`; "auto" looks at each line's keys.
        image_root: folder that image paths start from; None: the folder of the JSONL file.
        allow_outside: whether a path may lead out of that folder.
    """

    format: str = "auto"
    image_root: Path | None = None
    allow_outside: bool = False


def parse(data: bytes) -> dict[str, Any]:
    """One line as a JSON object.

    Raises:
        BadItem: "json".
    """
    try:
        line = json.loads(data.removeprefix(_BOM).decode("utf-8"))
        if b"\\ud" in data.lower():
            # Half of a surrogate pair is legal JSON but no text: it cannot be stored.
            json.dumps(line, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise BadItem("json", f"not JSON: {error}") from error
    if not isinstance(line, dict):
        raise BadItem("json", "not a JSON object")
    return line


def _get(line: Any, *path: str | int) -> Any:
    """`line[path[0]][path[1]]...`, or BadItem "missing_key" naming the path."""
    value = line
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError) as error:
            name = "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in path)
            raise BadItem("missing_key", f"no `{name.lstrip('.')}` in the line") from error
    return value


def _text(line: Any, *path: str | int) -> str:
    value = _get(line, *path)
    if not isinstance(value, str):
        raise BadItem("bad_value", f"`{path[0]}` must lead to a string, not {value!r:.60}")
    return value.strip()


def _list(line: dict[str, Any], key: str) -> list[Any]:
    value = _get(line, key)
    if not isinstance(value, list):
        raise BadItem("bad_value", f"`{key}` must be a list, not {value!r:.60}")
    return value


def _images(line: dict[str, Any], key: str) -> list[str]:
    """A list of image paths; a single string counts as a list of one."""
    value = _get(line, key)
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadItem("bad_value", f"`{key}` must be a list of image paths, not {value!r:.60}")
    return names


def _caption(line: dict[str, Any]) -> tuple[str, ...]:
    """The caption where there is one; a line without keeps its record."""
    if "conversations" not in line:
        return ()
    text = _text(line, "conversations", 0, "value")
    return (text,) if text else ()


def detect(line: dict[str, Any], form: str = "auto") -> Task:
    """The task of a line, by `form` or by its keys.

    Raises:
        BadItem: "format" when no format fits.
    """
    task = FORMATS[form]
    if task is not None:
        return task
    if "original_images" in line:
        return Task.COMPOSE
    if line.get("map_kind"):
        return Task.PERCEIVE
    if line.get("instruction"):
        return Task.EDIT
    if "image" in line and "conversations" in line:
        return Task.GENERATE
    raise BadItem("format", f"no known format has the keys {', '.join(sorted(line)) or '(none)'}")


def stream_of(line: dict[str, Any], form: str = "auto") -> str:
    """The stream that a line's record will belong to."""
    task = detect(line, form)
    count = len(_images(line, "original_images")) if task is Task.COMPOSE else 0
    if task is Task.COMPOSE and not count:
        raise BadItem("missing_key", "`original_images` is empty")
    return stream_name(task, min(count, MAX_CONDITIONS))


def surplus_images(line: dict[str, Any], form: str = "auto") -> int:
    """How many of the images that a line names have no part in its record."""
    count = 0
    for key, room in _ROOM[detect(line, form)]:
        names = line.get(key)
        if isinstance(names, list) and len(names) > room:
            count += len(names) - room
    return count


def id_of(line: dict[str, Any], item: str) -> str:
    """The id of a line's record; `item` where the line has none."""
    return str(line.get("id", item))


@functools.lru_cache(maxsize=64)
def _resolved(root: Path) -> Path:
    return root.resolve()


def find_image(root: Path, name: str, options: JsonlOptions) -> Path:
    """The path of an image file below `root`.

    Raises:
        BadItem: "outside" (leads out of `root`, also through a link), "missing_image",
            "unreadable_image" or "too_large".
    """
    try:
        path = (root / name).resolve()
        inside = options.allow_outside or path.is_relative_to(_resolved(root))
        present = inside and path.is_file()
        size = path.stat().st_size if present else 0
    except OSError as error:
        raise BadItem("unreadable_image", f"{name}: {error.strerror or error}") from error
    except ValueError as error:  # for example a zero byte in the name
        raise BadItem("missing_image", f"{name!r:.80} is not a path: {error}") from error
    if not inside:
        raise BadItem(
            "outside", f"{name} leads out of {root}; --image-root or --allow-outside permit it"
        )
    if not present:
        raise BadItem("missing_image", f"no image file {name!r} below {root}")
    if size > MAX_IMAGE_BYTES:
        raise BadItem("too_large", f"{name} has more than {MAX_IMAGE_BYTES} bytes")
    return path


def read_image(root: Path, name: str, options: JsonlOptions) -> bytes:
    """The bytes of an image file below `root`; raises what `find_image` raises."""
    path = find_image(root, name, options)
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadItem("unreadable_image", f"{name}: {error.strerror or error}") from error


def check_image(root: Path, name: str, options: JsonlOptions) -> bytes:
    """Stands in for `read_image` where only the presence of the file matters."""
    find_image(root, name, options)
    return b""


def _answer_turns(line: dict[str, Any]) -> tuple[Turn, ...]:
    """Questions and answers in the form that D-DiT trains (uniAlignment.md 3.3)."""
    turns = []
    for index in range(len(_list(line, "conversations"))):
        who = _text(line, "conversations", index, "from")
        text = _text(line, "conversations", index, "value")
        if who in ("gpt", "assistant"):
            turns.append(Turn(text, True))
        else:
            turns.append(Turn(f"Q: {text.replace('<image>', '').strip()} A: ", False))
    return tuple(turns)


def read_record(
    line: dict[str, Any],
    item: str,
    root: Path,
    options: JsonlOptions,
    read: Callable[[Path, str, JsonlOptions], bytes] = read_image,
) -> Record:
    """A line and its images as a record; images are read but not decoded (height = width = 0).

    Args:
        line: a parsed line.
        item: the id where the line has none.
        root: folder that image paths start from.
        options: see `JsonlOptions`.
        read: `read_image`, or `check_image` to leave the images unread.

    Raises:
        BadItem: "format", "missing_key", "bad_value" or what `read_image` raises.
    """
    task = detect(line, options.format)
    captions: tuple[str, ...] = ()
    instruction, turns, sources = "", (), []
    if task is Task.COMPOSE:
        sources = _images(line, "original_images")[:MAX_CONDITIONS]
        target = _text(line, "generated_images", 0)
        instruction = _text(line, "edit_prompt").strip(_PROMPT_JUNK)
        captions = (_text(line, "caption"),) if line.get("caption") else ()
    elif task in (Task.EDIT, Task.PERCEIVE):
        sources, target = [_text(line, "image", 0)], _text(line, "image", 1)
        instruction = _text(line, "instruction")
        captions = _caption(line)
        if task is Task.PERCEIVE and line.get("source_caption"):
            captions = (_text(line, "source_caption"),)
    else:
        target = next(iter(_images(line, "image")), "")
        if task is Task.ANSWER:
            turns = _answer_turns(line)
        else:
            captions = (_text(line, "conversations", 0, "value"),)
            if not captions[0]:
                raise BadItem("bad_value", "the caption is empty")
    return Record(
        id=id_of(line, item),
        task=task,
        target=read(root, target, options),
        height=0,
        width=0,
        conditions=tuple(read(root, name, options) for name in sources),
        instruction=instruction,
        captions=captions,
        turns=turns,
        map_kind=str(line.get("map_kind", "")) if task is Task.PERCEIVE else "",
    )


def texts(line: dict[str, Any]) -> Iterator[str]:
    """Every text of a line that a tokenizer should know."""
    for key in ("instruction", "edit_prompt", "caption", "source_caption"):
        if isinstance(line.get(key), str):
            yield line[key].strip(_PROMPT_JUNK)
    conversations = line.get("conversations")
    for turn in conversations if isinstance(conversations, list) else ():
        if isinstance(turn, dict) and isinstance(turn.get("value"), str):
            yield turn["value"]
