"""What a model bundle holds, and how a change of any of its bytes is noticed.

```
unialign.json    format, config, what it was made from, components, a SHA-256 of every file
transformer/     Orbax; plain nested dicts of arrays
text_encoder/    the same
tokenizer.json
```
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from unialign_jax.errors import UserError, bullets

FORMAT = 1
DESCRIPTION = "unialign.json"
TOKENIZER = "tokenizer.json"
COMPONENTS = ("transformer", "text_encoder")
DTYPES = ("float32", "bfloat16", "float16")
SEAL = "sha256"
# The parts of a run's config that sampling needs; None takes a section whole.
CONFIG: dict[str, tuple[str, ...] | None] = {
    "model": None,
    "text_encoder": None,
    "data": ("image_size", "text_length", "pixel_scale"),
    "sample": None,
}
REMEDY = "Bring back a copy, or make it again with `unialign bundle`."


def is_bundle(path: Path) -> bool:
    """Whether a folder says that it is a bundle."""
    return (path / DESCRIPTION).is_file()


def needed_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a resolved config that a bundle keeps."""
    needed = {}
    for section, keys in CONFIG.items():
        values = dict(config[section])
        needed[section] = {key: values[key] for key in keys or values if key in values}
    return needed


def render(description: Mapping[str, Any]) -> str:
    """The text of `unialign.json`, sealed with a SHA-256 over all of it but the seal."""
    content = {key: value for key, value in description.items() if key != SEAL}
    seal = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({**content, SEAL: seal}, indent=2) + "\n"


def read_description(path: Path) -> dict[str, Any]:
    """`unialign.json` of a bundle, as it was written.

    Raises:
        UserError: not there, of another format, or changed by as much as a byte.
    """
    file = path / DESCRIPTION
    try:
        text = file.read_text("utf-8")
        description = json.loads(text)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{file}: cannot be read ({why}). {REMEDY}") from error
    if not isinstance(description, dict):
        raise UserError(f"{file}: is no JSON object. {REMEDY}")
    if description.get("format") != FORMAT:
        raise UserError(
            f"{file}: is of format {description.get('format')!r}; this version of unialign_jax "
            f"reads format {FORMAT}. Use the version that wrote it, or make the bundle again."
        )
    if render(description) != text:
        raise UserError(f"{file}: is not what was written. {REMEDY}")
    return description


# ---------------------------------------------------------------------- files


def file_hashes(path: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder but `unialign.json`, by its path in there."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {
        file.relative_to(path).as_posix(): _hash(file)
        for file in files
        if file != path / DESCRIPTION
    }


def check_files(path: Path, description: Mapping[str, Any]) -> None:
    """Compares the files of a bundle with the hashes in its description.

    Raises:
        UserError: files that are missing or changed; lists them.
    """
    wrong = []
    for name, expected in description["files"].items():
        file = path / name
        try:
            if _hash(file) != expected:
                wrong.append(f"{name}: is not what was written")
        except OSError as error:
            wrong.append(f"{name}: {error.strerror or error}")
    if wrong:
        tops = dict.fromkeys(line.split("/")[0].split(":")[0] for line in wrong)
        raise UserError(
            f"{path}: the bundle is damaged ({', '.join(tops)}):\n{bullets(wrong)}\n{REMEDY}"
        )


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# ---------------------------------------------------------------------- arrays


def named_arrays(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(`blocks/image/scale`, array) of a nested dict, sorted by name."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    yield from sorted(
        (("/".join(str(key.key) for key in path), leaf) for path, leaf in leaves),
        key=lambda pair: pair[0],
    )


def tree_hash(tree: Mapping[str, Any]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, however the files hold them.

    Args:
        tree: arrays that this process holds whole.
    """
    total = hashlib.sha256()
    for name, leaf in named_arrays(tree):
        array = np.asarray(leaf)
        total.update(f"{name} {array.dtype.name} {list(array.shape)}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()
