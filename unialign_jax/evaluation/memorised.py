"""How well a model has learnt a small prepared data set by heart: pictures, captions, edits."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from unialign_jax.data.images import decode, to_pixels
from unialign_jax.data.prepared import Prepared
from unialign_jax.data.tasks import Task
from unialign_jax.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from unialign_jax.data.tasks import Record
    from unialign_jax.sampling.pipeline import Pipeline


@dataclasses.dataclass(frozen=True)
class Recall:
    """A record, the truth and what the model made of it.

    Attributes:
      record: the record.
      source: uint8 [R, R, 3] image that goes in; None for generation.
      truth: uint8 [R, R, 3] target image.
      made: the sampled image.
      caption: the sampled caption of the truth; None for edits.
      psnr: of `made` against `truth`, in dB.
    """

    record: Record
    source: np.ndarray | None
    truth: np.ndarray
    made: Image.Image
    caption: str | None
    psnr: float


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of a model that learnt records by heart.

    Attributes:
      generate: share of pictures whose nearest target, of all records, is the right one.
      caption: share of captions that are exact.
      edit: as `generate`, among the targets of the edits.
      psnr_generate: mean over pictures, in dB.
      psnr_edit: the same of edits.
      psnr_mean_picture: what the mean of all targets would reach, in dB.
    """

    generate: float
    caption: float
    edit: float
    psnr_generate: float
    psnr_edit: float
    psnr_mean_picture: float


def psnr(made: Any, truth: np.ndarray) -> float:
    """Peak signal-to-noise ratio of 8-bit pictures in dB: 10 log10(255^2 / mean squared error)."""
    error = np.mean(np.square(np.asarray(made, np.float64) - truth.astype(np.float64)))
    return float(10 * np.log10(255.0**2 / max(error, 1e-10)))


def recall(pipe: Pipeline, data: Prepared, image_size: int, *, edits: int, seed: int = 0) -> dict:
    """Samples every record of `generate` and up to `edits` records of `edit`.

    Returns:
      {"generate": [Recall, ...], "edit": [Recall, ...]}.
    """
    made: dict[str, list[Recall]] = {"generate": [], "edit": []}
    records = _records(data, Task.GENERATE)
    truths = [to_pixels(decode(record.target), image_size) for record in records]
    pictures = pipe.generate([record.captions[0] for record in records], seed=seed)
    captions = pipe.caption(truths, seed=seed)
    for record, truth, picture, caption in zip(records, truths, pictures, captions, strict=True):
        made["generate"].append(Recall(record, None, truth, picture, caption, psnr(picture, truth)))
    records = _records(data, Task.EDIT)[:edits]
    if records:
        truths = [to_pixels(decode(record.target), image_size) for record in records]
        sources = [to_pixels(decode(record.conditions[0]), image_size) for record in records]
        pictures = pipe.edit(sources, [record.instruction for record in records], seed=seed)
        for record, source, truth, picture in zip(records, sources, truths, pictures, strict=True):
            made["edit"].append(Recall(record, source, truth, picture, None, psnr(picture, truth)))
    return made


def score(made: dict[str, list[Recall]]) -> Scores:
    """Turns recalls into scores."""
    generated, edited = made["generate"], made["edit"]
    mean = np.mean([item.truth for item in generated], axis=0)
    return Scores(
        generate=_share(_nearest_is_right(generated)),
        caption=_share([item.caption in item.record.captions for item in generated]),
        edit=_share(_nearest_is_right(edited)),
        psnr_generate=_mean([item.psnr for item in generated]),
        psnr_edit=_mean([item.psnr for item in edited]),
        psnr_mean_picture=_mean([psnr(mean, item.truth) for item in generated]),
    )


def _nearest_is_right(items: list[Recall]) -> list[bool]:
    return [item.psnr >= max(psnr(item.made, other.truth) for other in items) for item in items]


def _records(data: Prepared, task: Task) -> list[Record]:
    try:
        streams = data.select({task.value: 1.0})[0]
    except UserError:
        return []
    source = data.source(streams[0].name)
    return [source[index] for index in range(len(source))]


def _share(hits: list[bool]) -> float:
    return sum(hits) / len(hits) if hits else 0.0


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
