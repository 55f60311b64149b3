"""What a user hands over, checked and turned into arrays of the model's sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from unialign_jax.data.tasks import MAX_CONDITIONS, BadItem, Task
from unialign_jax.errors import UserError
from unialign_jax.sampling.model import Model

if TYPE_CHECKING:
    from jaxtyping import Int32, UInt8

SEED_LIMIT = 1 << 32

# What `perceive` says for a kind of map. The first is the reference's training sentence.
PERCEPTION = {
    "depth": "Provide a detailed depth map of the entire scene.",
    "canny": "Provide a detailed canny edge map of the entire scene.",
    "pose": "Provide a detailed pose map of the people in the scene.",
}


@dataclasses.dataclass(frozen=True)
class TaskInput:
    """What one item of a task takes.

    Attributes:
      text: the name of its text, None where it takes none.
      images: smallest and largest number of images.
      makes_image: whether the result is an image or a text.
    """

    text: str | None
    images: tuple[int, int]
    makes_image: bool


INPUTS: dict[Task, TaskInput] = {
    Task.GENERATE: TaskInput("prompt", (0, 0), True),
    Task.CAPTION: TaskInput(None, (1, 1), False),
    Task.ANSWER: TaskInput("question", (1, 1), False),
    Task.EDIT: TaskInput("instruction", (1, 1), True),
    Task.PERCEIVE: TaskInput("instruction", (1, 1), True),
    Task.COMPOSE: TaskInput("instruction", (1, MAX_CONDITIONS), True),
}


@dataclasses.dataclass(frozen=True)
class Request:
    """One item, ready for the device.

    Attributes:
      task: what is asked for.
      ids: int32 [L], the prompt; for texts the given tokens with the mask id elsewhere.
      images: uint8 [R, R, 3] each, resized and cropped as in training.
      given: number of tokens at the start of `ids` that are the question.
      truncated: whether the prompt was longer than L tokens.
    """

    task: Task
    ids: Int32[np.ndarray, " L"]
    images: tuple[UInt8[np.ndarray, "R R 3"], ...]
    given: int = 0
    truncated: bool = False


def make_request(model: Model, task: Task, text: str = "", images: Sequence[Any] = ()) -> Request:
    """Checks one item.

    Args:
      model: sizes and tokenizer.
      task: what is asked for.
      text: the prompt, instruction or question; for `perceive` also a key of `PERCEPTION`.
      images: PIL images or uint8 arrays [H, W, 3] of any size.

    Raises:
      UserError: a wrong number of images, an image that cannot be read, an empty text, a question
        that leaves no room for an answer.
    """
    takes = INPUTS[task]
    least, most = takes.images
    if not least <= len(images) <= most:
        wanted = str(least) if least == most else f"{least} to {most}"
        raise UserError(f"{task} takes {wanted} image(s) per item, not {len(images)}.")
    if takes.text is not None and not isinstance(text, str):
        raise UserError(f"{task}: the {takes.text} is a text, not {type(text).__name__}.")
    if takes.text in ("instruction", "question") and not text.strip():
        raise UserError(f"{task}: the {takes.text} is empty.")
    if not text.isascii() and text.encode("utf-8", "ignore").decode() != text:
        raise UserError(f"{task}: the {takes.text} is no valid text (half a surrogate pair).")
    pixels = tuple(as_pixels(image, model.image_size) for image in images)
    length = model.text_length
    if task is Task.CAPTION:
        return Request(task, np.full(length, model.tokenizer.mask_id, np.int32), pixels)
    if task is Task.ANSWER:
        ids = model.tokenizer.encode_question([question_prompt(text)], length)[0]
        return Request(task, ids, pixels, given=int((ids != model.tokenizer.mask_id).sum()))
    text = perception_instruction(text) if task is Task.PERCEIVE else text
    ids, truncated = model.tokenizer.encode(text, length)
    return Request(task, ids, pixels, truncated=truncated)


def question_prompt(question: str) -> str:
    """A question in the form in which `answer` is trained (uniAlignment.md 3.3)."""
    return f"Q: {question.strip()} A: "


def perception_instruction(text: str) -> str:
    """The sentence for a kind of map; a text of more than one word is taken as it is.

    Raises:
      UserError: a single word that is no known kind.
    """
    if len(text.split()) > 1:
        return text
    kind = text.strip().lower()
    if kind not in PERCEPTION:
        raise UserError(
            f"no kind of map {kind!r}: one of {', '.join(PERCEPTION)}, or a whole instruction."
        )
    return PERCEPTION[kind]


def as_pixels(image: Any, size: int) -> UInt8[np.ndarray, "R R 3"]:
    """A PIL image or uint8 array [H, W, 3] as the square that training would show.

    The shorter side is scaled to `size` and the middle is kept, so the aspect does not change.

    Raises:
      UserError: anything else, or an image that cannot be decoded.
    """
    from PIL import Image

    from unialign_jax.data import images

    if not isinstance(image, Image.Image):
        array = np.asarray(image)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3 or not array.size:
            what = f"{array.dtype} {array.shape}" if array.dtype != object else type(image).__name__
            raise UserError(f"an image is a PIL image or a uint8 array [H, W, 3], not {what}.")
        image = Image.fromarray(array)
    try:
        return images.to_pixels(image.convert("RGB"), size)
    except BadItem as error:
        raise UserError(f"an image cannot be used: {error.reason}.") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"an image cannot be decoded: {error}.") from error


def pair_up(task: Task, texts: Any, images: Any) -> list[tuple[str, list[Any]]]:
    """One (text, images) per item from what a method of `Pipeline` was given.

    Texts and images are single or in lists; one of the one kind goes with all of the other. An
    item of `compose` has a list of images; a flat list of images is one item.

    Raises:
      UserError: lists of different lengths.
    """
    lines = list(texts) if isinstance(texts, (list, tuple)) else [texts]
    rows = _image_rows(task, images)
    if len(lines) == 1:
        lines *= len(rows)
    elif len(rows) == 1:
        rows *= len(lines)
    if len(rows) != len(lines):
        raise UserError(
            f"{task}: {len(rows)} item(s) of images and {len(lines)} text(s); give as many of the "
            "one as of the other, or one for all."
        )
    return list(zip(lines, rows, strict=True))


def _image_rows(task: Task, images: Any) -> list[list[Any]]:
    """The images of each item."""
    batched = isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4
    entries = list(images) if batched else [images]
    if task is not Task.COMPOSE:
        return [[entry] for entry in entries]
    nested = [isinstance(entry, (list, tuple)) for entry in entries]
    return [list(entry) for entry in entries] if any(nested) and all(nested) else [entries]


def item_seeds(seed: int | Sequence[int], count: int) -> list[tuple[int, int]]:
    """What each of `count` items draws from: (seed, i), or (its own seed, 0).

    Raises:
      UserError: a wrong number of seeds.
    """
    if isinstance(seed, (int, np.integer)):
        return [(int(seed), i) for i in range(count)]
    seeds = list(seed)
    if len(seeds) != count:
        raise UserError(f"{len(seeds)} seeds for {count} items: give one seed, or one per item.")
    return [(s, 0) for s in seeds]


def check_seed(seed: Any) -> int:
    """A seed as int.

    Raises:
      UserError: not a whole number of 32 bits.
    """
    whole = isinstance(seed, (int, np.integer)) and not isinstance(seed, bool)
    if not whole or not 0 <= seed < SEED_LIMIT:
        raise UserError(f"seed is {seed!r}: a whole number from 0 to {SEED_LIMIT - 1}.")
    return int(seed)
