"""Small real inputs: encoded pictures, JSONL lines of every format, prepared directories."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unialign_jax.data.prepare import PrepareOptions, prepare
from unialign_jax.data.shards import StoreOptions
from unialign_jax.data.sources.jsonl_source import JsonlSource
from unialign_jax.data.tasks import Record, Task, Turn
from unialign_jax.data.tokenizer import train_tokenizer

CAPTIONS = [f"picture number {k} of a {what}" for k in range(6) for what in ("cat", "dog")]


def encoded(seed: int = 0, height: int = 20, width: int = 26, form: str = "PNG") -> bytes:
    """An encoded image whose pixels follow from the seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form)
    return out.getvalue()


class Lines:
    """Writes a JSONL file and its images below a folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.lines: list[str] = []
        self._images = 0

    def image(self, data: bytes | None = None) -> str:
        """Writes an image file; returns its path relative to the folder."""
        name = f"images/{self._images:04d}.png"
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(self._images) if data is None else data)
        self._images += 1
        return name

    def raw(self, text: str) -> Lines:
        self.lines.append(text)
        return self

    def add(self, **line: object) -> Lines:
        return self.raw(json.dumps(line))

    def t2i(self, count: int = 1, **more: object) -> Lines:
        for _ in range(count):
            name = self.image()
            text = [{"from": "human", "value": f"caption of {name}"}]
            self.add(**{"image": [name], "conversations": text, **more})
        return self

    def edit(self, count: int = 1, **more: object) -> Lines:
        for _ in range(count):
            names = [self.image(), self.image()]
            text = [{"from": "human", "value": f"caption of {names[1]}"}]
            self.add(**{"image": names, "instruction": "mend it", "conversations": text, **more})
        return self

    def compose(self, references: int, count: int = 1, **more: object) -> Lines:
        for _ in range(count):
            line = {
                "original_images": [self.image() for _ in range(references)],
                "generated_images": [self.image()],
                "edit_prompt": ' \\"both together\\" ',
                "caption": "a caption",
            }
            self.add(**{**line, **more})
        return self

    def write(self, name: str = "lines.jsonl") -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / name
        path.write_text("".join(line + "\n" for line in self.lines))
        return path


@pytest.fixture
def lines(tmp_path):
    """A writer of JSONL lines in a folder of its own."""
    return Lines(tmp_path / "source")


@pytest.fixture
def picture():
    """The function that encodes a picture."""
    return encoded


@pytest.fixture(scope="session")
def tokenizer():
    """A small tokenizer that knows the captions used here."""
    return train_tokenizer(CAPTIONS, 256)


@pytest.fixture
def make_record():
    """A function that makes a valid record of any training task."""

    def make(task: Task = Task.GENERATE, seed: int = 0, **changes: object) -> Record:
        fields: dict = {
            "id": f"{task}-{seed}",
            "task": task,
            "target": encoded(seed),
            "height": 20,
            "width": 26,
        }
        if task is Task.ANSWER:
            fields["turns"] = (Turn("Q: what is it? A: ", False), Turn("a cat", True))
        else:
            fields["captions"] = ("picture of a cat",)
        if task in (Task.EDIT, Task.PERCEIVE, Task.COMPOSE):
            fields["conditions"] = (encoded(seed + 1000),)
            fields["instruction"] = "make it a dog"
        if task is Task.PERCEIVE:
            fields["map_kind"] = "depth"
        return Record(**{**fields, **changes})

    return make


@pytest.fixture(scope="session")
def prepared_dir(tmp_path_factory):
    """A prepared directory: 7 generate, 5 edit, 3 + 2 compose (1 and 2 references) records."""
    folder = tmp_path_factory.mktemp("prepared")
    writer = Lines(folder / "source").t2i(7).edit(5).compose(1, 3).compose(2, 2)
    options = PrepareOptions(StoreOptions(shards=2), train_tokenizer=256)
    prepare(JsonlSource((writer.write(),)), folder / "out", options)
    return folder / "out"
