"""Twelve photographs bundled with scikit-image, as the reference's JSONL lines.

Nothing is downloaded: the files lie in scikit-image's wheel. Captions are ours; editing pairs are
exact pixel operations on the same photographs. The result is an ordinary folder of images and
JSONL files that goes through the same `prepare` as any other.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageOps

from unialign_jax.data import images, prepared
from unialign_jax.errors import UserError

SIZE = 256
EDITS = 2


@dataclasses.dataclass(frozen=True)
class Photo:
    """A bundled photograph: its name here, its file, our caption, and its licence.

    `licence` is what the documentation of `skimage.data` states.
    """

    name: str
    file: str
    caption: str
    licence: str
    colour: bool = True


@dataclasses.dataclass(frozen=True)
class Edit:
    """A pixel operation with the words that ask for it and the words that describe its result."""

    name: str
    instruction: str
    result: str
    apply: Callable[[Image.Image], Image.Image]


PHOTOS = (
    Photo(
        "astronaut",
        "astronaut.png",
        "a smiling astronaut in an orange space suit",
        "NASA, public domain",
    ),
    Photo(
        "camera",
        "camera.png",
        "a man in a dark coat looking through a camera",
        "CC0, Lav Varshney",
        colour=False,
    ),
    Photo(
        "cat",
        "chelsea.png",
        "the face of a ginger cat with green eyes",
        "CC0, Stefan van der Walt",
    ),
    Photo(
        "clock",
        "clock_motion.png",
        "a blurred clock on a plain grey wall",
        "public domain, Stefan van der Walt",
        colour=False,
    ),
    Photo(
        "coffee",
        "coffee.png",
        "a cup of coffee on a red saucer with a spoon",
        "CC0, Rachel Michetti",
    ),
    Photo(
        "coins",
        "coins.png",
        "four rows of old coins on a dark background",
        "Brooklyn Museum, no known copyright restrictions",
        colour=False,
    ),
    Photo(
        "galaxies",
        "hubble_deep_field.jpg",
        "hundreds of distant galaxies in a black sky",
        "NASA, public domain",
    ),
    Photo(
        "rocket",
        "rocket.jpg",
        "a white rocket on its launch pad at dusk",
        "SpaceX, public domain",
    ),
    Photo(
        "retina",
        "retina.jpg",
        "the inside of an eye, round and red",
        "CC0, Mikael Haggstrom",
    ),
    Photo(
        "bricks",
        "brick.png",
        "a wall of long grey bricks",
        "CC0, CC0Textures",
        colour=False,
    ),
    Photo(
        "grass",
        "grass.png",
        "a patch of grass in black and white",
        "CC0, DeviantArt (linolafett)",
        colour=False,
    ),
    Photo(
        "tissue",
        "ihc.png",
        "brown and blue stained tissue under a microscope",
        "CMMI, no known copyright restrictions",
    ),
)

EDIT_KINDS = (
    Edit("upside_down", "turn it upside down", "upside down", ImageOps.flip),
    Edit("inverted", "invert the colours", "with inverted colours", ImageOps.invert),
    Edit("mirrored", "mirror it", "mirrored", ImageOps.mirror),
    Edit(
        "grey",
        "make it black and white",
        "in black and white",
        lambda image: image.convert("L").convert("RGB"),
    ),
)


def photo_folder() -> Path:
    """The data folder of the installed scikit-image.

    Raises:
        UserError: when scikit-image is not installed.
    """
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "the bundled photographs come with scikit-image, which is not installed: "
            "pip install 'unialign-jax[demo]' (or scikit-image)"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "data"


def edits_of(index: int, photo: Photo, count: int) -> list[Edit]:
    """`count` edits for the photo at `index`, starting at another kind for each photo."""
    kinds = [kind for kind in EDIT_KINDS if photo.colour or kind.name != "grey"]
    return [kinds[(index + k) % len(kinds)] for k in range(min(count, len(kinds)))]


def write_photos(folder: Path, *, size: int = SIZE, edits: int = EDITS) -> tuple[Path, Path]:
    """Writes `images/`, `t2i.jsonl`, `edit.jsonl` and `LICENCES.txt`.

    Photographs are cut to squares of `size` pixels first, so that a source and its edited
    version match pixel by pixel at any later size.

    Args:
        folder: where to write; made if needed.
        size: height and width of the written images.
        edits: editing pairs per photograph, 0 to 4.

    Returns:
        The paths of the two JSONL files.

    Raises:
        UserError: scikit-image or one of its files is missing, or `folder` cannot be written.
    """
    source = photo_folder()
    lines: dict[str, list[dict[str, object]]] = {"t2i": [], "edit": []}
    for index, photo in enumerate(PHOTOS):
        path = source / photo.file
        if not path.is_file():
            raise UserError(f"{path} is missing: install scikit-image 0.24 or later again")
        pixels = images.to_pixels(images.decode(path.read_bytes()), size)
        square = Image.fromarray(pixels)
        name = f"images/{photo.name}.png"
        _write(folder / name, square)
        lines["t2i"].append(
            {"id": photo.name, "image": [name], "conversations": [{"value": photo.caption}]}
        )
        for kind in edits_of(index, photo, edits):
            changed = f"images/{photo.name}_{kind.name}.png"
            _write(folder / changed, kind.apply(square))
            lines["edit"].append(
                {
                    "id": f"{photo.name}-{kind.name}",
                    "image": [name, changed],
                    "instruction": kind.instruction,
                    "conversations": [{"value": f"{photo.caption}, {kind.result}"}],
                }
            )
    for form, entries in lines.items():
        text = "".join(json.dumps(entry) + "\n" for entry in entries)
        prepared.write_text(folder / f"{form}.jsonl", text)
    licences = "".join(f"{photo.file}: {photo.licence}\n" for photo in PHOTOS)
    prepared.write_text(
        folder / "LICENCES.txt", f"From scikit-image (see the docs of skimage.data):\n{licences}"
    )
    return folder / "t2i.jsonl", folder / "edit.jsonl"


def _write(path: Path, image: Image.Image) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(images.encode(image))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
