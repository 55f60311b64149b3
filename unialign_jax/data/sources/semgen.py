"""SemGen-Bench's lines as the reference's text-to-image lines.

The benchmark pairs photographs with long captions (`t2i_long`) and shorter prompts
(`t2i_complex`); its editing instructions have no target images, so they make no records.
"""

from __future__ import annotations

import json
from pathlib import Path

from unialign_jax.data import prepared
from unialign_jax.data.sources import jsonl
from unialign_jax.data.tasks import BadItem
from unialign_jax.errors import UserError

CAPTIONS = ("t2i_long", "t2i_complex")


def find_bench(folder: Path) -> Path:
    """The benchmark's JSONL file in `folder`.

    Raises:
        UserError: when there is none.
    """
    path = folder / "semgen_bench.jsonl"
    if not path.is_file():
        raise UserError(f"no semgen_bench.jsonl in {folder}: give the benchmark's folder")
    return path


def write_t2i(
    folder: Path, out: Path, *, caption: str = "t2i_long", limit: int | None = None
) -> int:
    """Writes one text-to-image line per photograph; image paths stay relative to `folder`.

    Args:
        folder: holds `semgen_bench.jsonl` and `images/`.
        out: the JSONL file to write; prepare it with `image_root = folder`.
        caption: which key becomes the caption, one of `CAPTIONS`.
        limit: at most so many lines.

    Returns:
        The number of lines.

    Raises:
        UserError: no benchmark in `folder`, or a line that is not one of its lines.
    """
    path = find_bench(folder)
    lines = []
    for number, data in enumerate(path.read_bytes().splitlines(), start=1):
        if limit is not None and len(lines) == limit:
            break
        if not data.strip():
            continue
        try:
            entry = jsonl.parse(data)
            lines.append(
                {
                    "id": f"semgen-{entry['image_id']}",
                    "image": [entry["image_path"]],
                    "conversations": [{"from": "human", "value": entry[caption]}],
                }
            )
        except (BadItem, KeyError) as error:
            raise UserError(f"{path}, line {number}: not a SemGen-Bench line ({error})") from error
    prepared.write_text(out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return len(lines)
