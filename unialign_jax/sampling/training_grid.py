"""Sample grids during training: what the weights make of a few records, beside the truth."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from unialign_jax.data import images
from unialign_jax.data.prepared import Prepared
from unialign_jax.data.tasks import BadItem, Record, Task
from unialign_jax.errors import UserError
from unialign_jax.sampling.grid import contact_sheet
from unialign_jax.sampling.model import build_model
from unialign_jax.sampling.pipeline import Pipeline
from unialign_jax.sampling.requests import Request, make_request

if TYPE_CHECKING:
    from PIL import Image

    from unialign_jax.data.tokenizer import TextTokenizer
    from unialign_jax.models.functional import Params
    from unialign_jax.sampling.model import Model

ROWS_PER_TASK = 4
TITLES = ("asked for", "given", "wanted", "sampled", "described as")


@dataclasses.dataclass(frozen=True)
class Example:
    """A record as a row of the grid.

    Attributes:
      request: what to sample.
      text: prompt, instruction or question.
      given: images that go in.
      target: the image that the record holds; None for a bare prompt.
      caption: whether the target is described too.
    """

    request: Request
    text: str
    given: tuple[np.ndarray, ...] = ()
    target: np.ndarray | None = None
    caption: bool = False


class SampleGrid:
    """Draws a grid for any parameters of one model; programs are compiled once.

    Args:
      model: networks, tokenizer, sizes, defaults.
      examples: rows, those of one task beside each other.
    """

    def __init__(self, model: Model, examples: Sequence[Example]):
        self._pipeline = Pipeline(model, {})
        self._examples = list(examples)

    def draw(self, params: Params, seed: int = 0) -> tuple[Image.Image, dict[str, str]]:
        """Samples every row, always from the same noise.

        Args:
          params: {"transformer", "text_encoder"}.
          seed: of the noise.

        Returns:
          The grid, and the sampled texts by what was asked for.
        """
        pipe = self._pipeline.with_params(params)
        sampled: list[Any] = [None] * len(self._examples)
        described: list[str | None] = [None] * len(self._examples)
        for rows in _by_kind(self._examples):
            requests = [self._examples[row].request for row in rows]
            made = pipe.sample(requests, [(seed, row) for row in rows], batch=ROWS_PER_TASK)
            for row, result in zip(rows, made, strict=True):
                sampled[row] = result
        rows = [row for row, example in enumerate(self._examples) if example.caption]
        requests = [pipe.request(Task.CAPTION, "", [self._examples[row].target]) for row in rows]
        texts = pipe.sample(requests, [(seed, row) for row in rows], batch=ROWS_PER_TASK)
        for row, text in zip(rows, texts, strict=True):
            described[row] = text
        table = [
            [example.text, _merged(example.given), example.target, result, text]
            for example, result, text in zip(self._examples, sampled, described, strict=True)
        ]
        words = {
            example.text: text if text is not None else result
            for example, result, text in zip(self._examples, sampled, described, strict=True)
            if text is not None or isinstance(result, str)
        }
        return contact_sheet(table, titles=TITLES), words


def make_sample_grid(setup: Any, tokenizer: TextTokenizer) -> Callable[[Any, int], np.ndarray]:
    """The trainer's hook: (state, step) -> uint8 [H, W, 3].

    Rows are the first records of each task in the mixture and the prompts of `sample.prompts`;
    weights are the moving average where there is one.

    Args:
      setup: anything with the resolved `config` as nested dicts.
      tokenizer: of the records.
    """
    model = build_model(setup.config, tokenizer)
    examples = [
        *prompt_examples(model, model.sample.prompts),
        *record_examples(model, setup.config["data"]),
    ]
    grid = SampleGrid(model, examples)

    def sample_grid(state: Any, step: int) -> np.ndarray:
        picture, _ = grid.draw({**state.params, **(state.ema or {})})
        return np.asarray(picture)

    return sample_grid


def prompt_examples(model: Model, prompts: Sequence[str]) -> list[Example]:
    """Rows for prompts."""
    return [Example(make_request(model, Task.GENERATE, text), text) for text in prompts]


def record_examples(
    model: Model, data: Mapping[str, Any], count: int = ROWS_PER_TASK
) -> list[Example]:
    """Rows for the first readable records of each task that is trained on.

    Args:
      model: sizes and tokenizer.
      data: the `data` section: `path` and `mixture`.
      count: rows per task.
    """
    prepared = Prepared(data["path"])
    streams, _ = prepared.select(data.get("mixture") or {})
    found: dict[Task, list[Example]] = {}
    for stream in streams:
        rows = found.setdefault(stream.task, [])
        for example in _readable(model, prepared.source(stream.name)):
            if len(rows) == count:
                break
            rows.append(example)
    return [example for rows in found.values() for example in rows]


def _readable(model: Model, source: Any) -> Iterator[Example]:
    for index in range(len(source)):
        try:
            yield make_example(model, source[index])
        except (BadItem, UserError):
            continue  # training counts and reports bad records; here the next one is as good


def make_example(model: Model, record: Record) -> Example:
    """A record as a row.

    Raises:
      BadItem: an image that cannot be decoded.
      UserError: a record that cannot be asked for, such as one without a caption.
    """
    size = model.image_size
    target = images.to_pixels(images.decode(record.target), size)
    given = tuple(images.to_pixels(images.decode(data), size) for data in record.conditions)
    if record.task is Task.ANSWER:
        asked = next(turn.text for turn in record.turns if not turn.is_answer)
        text = asked.strip().removeprefix("Q:").removesuffix("A:").strip()
        return Example(make_request(model, Task.ANSWER, text, [target]), text, (target,))
    text = record.instruction
    if record.task is Task.GENERATE:
        if not record.captions:
            raise UserError(f"record {record.id!r} has no caption")
        text = record.captions[0]
    request = make_request(model, record.task, text, given)
    return Example(request, text, given, target, caption=record.task is Task.GENERATE)


def _by_kind(examples: Sequence[Example]) -> Iterator[list[int]]:
    """Rows that can be sampled in one call: those of the same task."""
    groups: dict[Task, list[int]] = {}
    for row, example in enumerate(examples):
        groups.setdefault(example.request.task, []).append(row)
    yield from groups.values()


def _merged(given: tuple[np.ndarray, ...]) -> np.ndarray | None:
    """The given images as one cell, side by side."""
    return np.concatenate(given, axis=1) if given else None
