"""What a model bundle holds, and how a change of any of its bytes is noticed.

```
unialign.json    format, config, what it was made from, components, a SHA-256 of every file
transformer/     Orbax; plain nested dicts of arrays, one array per layer
text_encoder/    the same
vae/             the same, of a model whose latents are an autoencoder's
tokenizer.json
```

A component may also lie in another bundle that this one names. Any of them may be missing: such a
bundle is a start for training, or a part to build one from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from unialign_jax.errors import UserError, bullets

FORMAT = 3
DESCRIPTION = "unialign.json"
TOKENIZER = "tokenizer.json"
TRANSFORMER, TEXT_ENCODER, AUTOENCODER = "transformer", "text_encoder", "vae"
COMPONENTS = (TRANSFORMER, TEXT_ENCODER, AUTOENCODER)
DTYPES = ("float32", "bfloat16", "float16")
SEAL = "sha256"
# The parts of a run's config that sampling needs; None takes a section whole.
CONFIG: dict[str, tuple[str, ...] | None] = {
    "model": None,
    "text_encoder": None,
    "autoencoder": None,
    "qwen_vision": None,
    "siglip": None,
    "data": ("image_size", "text_length", "pixel_scale"),
    "sample": None,
}
_HASHED_AT_ONCE = 4
REMEDY = "Bring back a copy, or make it again with `unialign bundle`."


def is_bundle(path: Path) -> bool:
    """Whether a folder says that it is a bundle."""
    return (path / DESCRIPTION).is_file()


def needed_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a resolved config that a bundle keeps."""
    needed = {}
    for section, keys in CONFIG.items():
        if section not in config:
            continue
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
    """SHA-256 of every file in a folder but `unialign.json`, by its path in there.

    Raises:
        OSError: a file cannot be read.
    """
    files = sorted(file for file in path.rglob("*") if file.is_file())
    files = [file for file in files if file != path / DESCRIPTION]
    names = (file.relative_to(path).as_posix() for file in files)
    hashes: dict[str, str] = {}
    for name, found in zip(names, _hashes(files), strict=True):
        if isinstance(found, OSError):
            raise found
        hashes[name] = found
    return hashes


def check_files(path: Path, description: Mapping[str, Any]) -> None:
    """Compares the files of a bundle with the hashes in its description.

    Raises:
        UserError: files that are missing or changed; lists them.
    """
    names = list(description["files"])
    wrong = []
    for name, found in zip(names, _hashes([path / name for name in names]), strict=True):
        if isinstance(found, OSError):
            wrong.append(f"{name}: {found.strerror or found}")
        elif found != description["files"][name]:
            wrong.append(f"{name}: is not what was written")
    if wrong:
        tops = dict.fromkeys(line.split("/")[0].split(":")[0] for line in wrong)
        raise UserError(
            f"{path}: the bundle is damaged ({', '.join(tops)}):\n{bullets(wrong)}\n{REMEDY}"
        )


def _hashes(files: Sequence[Path]) -> list[str | OSError]:
    """SHA-256 of each file, or why it cannot be read; several at once."""

    def one(file: Path) -> str | OSError:
        try:
            with file.open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            return error

    with ThreadPoolExecutor(_HASHED_AT_ONCE) as pool:
        return list(pool.map(one, files))


# ---------------------------------------------------------------------- arrays


def named_arrays(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(`blocks/image/scale`, array) of a nested dict, sorted by name."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    yield from sorted(
        (("/".join(str(key.key) for key in path), leaf) for path, leaf in leaves),
        key=lambda pair: pair[0],
    )
