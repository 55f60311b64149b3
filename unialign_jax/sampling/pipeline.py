"""The Python face of a trained model: six tasks, batches of any size, one seed per item.

```python
pipe = Pipeline.from_pretrained("runs/photos")
images = pipe.generate(["a red cube", "a cat"], steps=28, guidance=7.0, seed=0)
texts = pipe.caption(images)
```
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh

from unialign_jax.data.tasks import Task
from unialign_jax.diffusion import flow
from unialign_jax.errors import UserError
from unialign_jax.models.functional import Params
from unialign_jax.sampling.loading import default_mesh, load_model
from unialign_jax.sampling.model import Model
from unialign_jax.sampling.programs import Programs, mesh_of, parts_of
from unialign_jax.sampling.requests import (
    INPUTS,
    Request,
    check_seed,
    item_seeds,
    make_request,
    pair_up,
)

if TYPE_CHECKING:
    from PIL import Image

    Images = Image.Image | np.ndarray | Sequence[Image.Image | np.ndarray]
    Texts = str | Sequence[str]

LARGEST_BATCH = 8


class Pipeline:
    """A model and its parameters, ready to sample.

    All methods take single inputs or lists and return a list. Images go in as PIL images or uint8
    arrays [H, W, 3] of any size (or one array [B, H, W, 3]) and come out as PIL images.

    Common arguments: `steps`, `guidance` and `negative` default to the model's config. `seed` is
    one number, with which item i draws from (seed, i), or one number per item; an item with its own
    seed s equals the first item of a call with seed s. Results do not depend on what else is in the
    batch, up to rounding. `batch` is the number of items computed at once, to which the last ones
    are padded; by default the next power of two, at most 8. Every other combination of batch, size,
    steps, number of images and guided or not is compiled once.

    Args:
      model: networks, tokenizer, sizes, defaults.
      params: {"transformer", "text_encoder"} and, where pixels are not the latents, "vae"; placed
        on one device or a mesh.
    """

    def __init__(self, model: Model, params: Params):
        self.model = model
        self.params = params
        self._programs = Programs(model)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        weights: str = "ema",
        dtype: str | None = None,
        *,
        step: int | None = None,
        mesh: Mesh | None = None,
        param_dtype: str | None = "float32",
        revision: str | None = None,
    ) -> Pipeline:
        """Loads a model: a run directory, a bundle, a PyTorch directory, or one of the Hub.

        Args:
          path: the directory of a run (`unialign train`), of a bundle (`unialign bundle`, `unialign
            convert`) or of the published PyTorch layout (model_index.json); the name of a bundle
            that comes with the package; or OWNER/NAME on the Hugging Face Hub.
          weights: of a run: "ema" for the moving average, "raw" for the last weights.
          dtype: compute dtype, for example "bfloat16"; None is the model's.
          step: a saved step; None is the newest.
          mesh: devices over which batches are split, and parameters where its fsdp or tensor axis
            is above 1; None takes this process's accelerators.
          param_dtype: dtype in which the parameters are held, for example "bfloat16"; None leaves
            them as they are stored.
          revision: of a model on the Hub: a branch, tag or commit; name a commit to pin it.

        Raises:
          UserError: anything else, or a model that cannot be read.
        """
        model, params, _ = load_model(
            path,
            weights,
            dtype=dtype,
            step=step,
            mesh=mesh or default_mesh(),
            param_dtype=param_dtype,
            revision=revision,
        )
        return cls(model, params)

    def with_params(self, params: Params) -> Pipeline:
        """The same model with other parameters; what is compiled is shared."""
        other = Pipeline(self.model, params)
        other._programs = self._programs
        return other

    def generate(
        self,
        prompts: Texts,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int | Sequence[int] = 0,
        negative: str | None = None,
        height: int | None = None,
        width: int | None = None,
        batch: int | None = None,
    ) -> list[Image.Image]:
        """Images of prompts.

        Args:
          prompts: texts.
          steps: Euler steps.
          guidance: scale of classifier-free guidance; 1 or less is none, at half the cost.
          seed: one, or one per item.
          negative: text to be guided away from.
          height: in pixels, a multiple of the patch size; default is the training size.
          width: the same.
          batch: items computed at once.

        Raises:
          UserError: a size, number or seed that cannot be.
        """
        lines = [prompts] if isinstance(prompts, str) else list(prompts)
        return self._run(
            Task.GENERATE,
            [(line, []) for line in lines],
            seed,
            steps=steps,
            guidance=guidance,
            negative=negative,
            height=height,
            width=width,
            batch=batch,
        )

    def edit(
        self,
        images: Images,
        instructions: Texts,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int | Sequence[int] = 0,
        negative: str | None = None,
        batch: int | None = None,
    ) -> list[Image.Image]:
        """Images changed by instructions; arguments as `generate`.

        The source is scaled and its middle cut out as in training, which keeps its aspect.
        """
        return self._run(
            Task.EDIT,
            pair_up(Task.EDIT, instructions, images),
            seed,
            steps=steps,
            guidance=guidance,
            negative=negative,
            batch=batch,
        )

    def perceive(
        self,
        images: Images,
        kinds: Texts,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int | Sequence[int] = 0,
        negative: str | None = None,
        batch: int | None = None,
    ) -> list[Image.Image]:
        """Maps of images: "depth", "canny", "pose" or a whole instruction; the rest as `edit`."""
        return self._run(
            Task.PERCEIVE,
            pair_up(Task.PERCEIVE, kinds, images),
            seed,
            steps=steps,
            guidance=guidance,
            negative=negative,
            batch=batch,
        )

    def compose(
        self,
        images: Sequence[Any],
        instructions: Texts,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int | Sequence[int] = 0,
        negative: str | None = None,
        batch: int | None = None,
    ) -> list[Image.Image]:
        """Images made of 1 to 3 references each: `images` is a list of lists. Else as `edit`."""
        return self._run(
            Task.COMPOSE,
            pair_up(Task.COMPOSE, instructions, images),
            seed,
            steps=steps,
            guidance=guidance,
            negative=negative,
            batch=batch,
        )

    def caption(
        self,
        images: Images,
        *,
        steps: int | None = None,
        seed: int | Sequence[int] = 0,
        batch: int | None = None,
    ) -> list[str]:
        """Descriptions of images."""
        pairs = pair_up(Task.CAPTION, "", images)
        return self._run(Task.CAPTION, pairs, seed, steps=steps, batch=batch)

    def answer(
        self,
        images: Images,
        questions: Texts,
        *,
        steps: int | None = None,
        seed: int | Sequence[int] = 0,
        batch: int | None = None,
    ) -> list[str]:
        """Answers to questions about images."""
        pairs = pair_up(Task.ANSWER, questions, images)
        return self._run(Task.ANSWER, pairs, seed, steps=steps, batch=batch)

    def request(self, task: Task, text: str = "", images: Sequence[Any] = ()) -> Request:
        """Checks one item for `sample`; see `requests.make_request`."""
        return make_request(self.model, task, text, images)

    def sample(
        self,
        requests: Sequence[Request],
        seeds: Sequence[tuple[int, int]],
        *,
        steps: int | None = None,
        guidance: float | None = None,
        negative: str | None = None,
        height: int | None = None,
        width: int | None = None,
        batch: int | None = None,
    ) -> list[Any]:
        """Results for checked items of one task, in their order: PIL images or strings.

        Args:
          requests: items of `request`.
          seeds: per item, a seed and a number that it is folded with.
          steps: as in `generate`, as are `guidance`, `negative` and `batch`.
          guidance: see there.
          negative: see there.
          height: for `generate` only.
          width: the same.
          batch: see there.

        Raises:
          UserError: a number out of its range, or too little memory for the batch.
        """
        if not requests:
            return []
        task = requests[0].task
        sample = self.model.sample
        makes_image = INPUTS[task].makes_image
        steps = steps if steps is not None else (sample.steps if makes_image else sample.text_steps)
        guidance = sample.guidance if guidance is None else guidance
        square = self.model.image_size
        size = (square if height is None else height, square if width is None else width)
        self._check(steps, guidance, size, seeds)
        batch = self._batch_size(len(requests), batch)
        levels = flow.sampling_sigmas(steps, sample.shift, sample.table)
        null = self._negative(sample.negative if negative is None else negative, guidance)

        def compute(chunk: list[int]) -> list[Any]:
            rows = [*chunk, *[chunk[-1]] * (batch - len(chunk))]
            ids = np.stack([requests[i].ids for i in rows])
            count = len(requests[chunk[0]].images)
            images = tuple(np.stack([requests[i].images[k] for i in rows]) for k in range(count))
            pairs = np.asarray([seeds[i] for i in rows], np.uint32)
            if makes_image:
                pixels = self._programs.images(
                    self.params,
                    ids,
                    null,
                    images,
                    pairs,
                    levels=levels,
                    guidance=guidance,
                    size=size,
                )
                return [_to_image(p) for p in pixels[: len(chunk)]]
            tokens = self._programs.texts(self.params, images[0], ids, pairs, steps=steps)
            decode = self.model.tokenizer.decode
            return [decode(tokens[k][requests[i].given :]) for k, i in enumerate(chunk)]

        results: list[Any] = [None] * len(requests)
        for chunk in _chunks(requests, batch):
            with _memory_errors(batch):
                for i, result in zip(chunk, compute(chunk), strict=True):
                    results[i] = result
        return results

    def _run(
        self, task: Task, items: list[tuple[str, list[Any]]], seed: Any, **options: Any
    ) -> list[Any]:
        requests = []
        for index, (text, images) in enumerate(items):
            try:
                requests.append(self.request(task, text, images))
            except UserError as error:
                raise UserError(f"item {index}: {error}") from error
        cut = sum(request.truncated for request in requests)
        if cut:
            warnings.warn(
                f"{cut} of {len(requests)} texts are longer than {self.model.text_length} tokens; "
                "the rest of them is ignored",
                stacklevel=3,
            )
        return self.sample(requests, item_seeds(seed, len(requests)), **options)

    def _negative(self, text: str, guidance: float) -> np.ndarray | None:
        if guidance <= 1:
            return None
        length = self.model.text_length
        if not text.strip():
            return self.model.tokenizer.null_ids(length)
        return self.model.tokenizer.encode(text, length)[0][None]

    def _batch_size(self, items: int, batch: int | None) -> int:
        if batch is None:
            batch = min(LARGEST_BATCH, 1 << (items - 1).bit_length())
        elif batch < 1:
            raise UserError(f"batch is {batch}: at least 1.")
        parts = parts_of(mesh_of(self.params))
        return -(-batch // parts) * parts

    def _check(self, steps: int, guidance: float, size: tuple[int, int], seeds: Any) -> None:
        if steps < 1:
            raise UserError(f"steps is {steps}: at least 1.")
        if not np.isfinite(guidance) or guidance < 0:
            raise UserError(f"guidance is {guidance}: a number from 0.")
        step, largest = self.model.patch_pixels, self.model.largest_side
        for name, pixels in zip(("height", "width"), size, strict=True):
            if pixels % step or not 0 < pixels <= largest:
                raise UserError(
                    f"{name} is {pixels}: a multiple of {step} from {step} to {largest}."
                )
        for seed, _ in seeds:
            check_seed(seed)


def _chunks(requests: Sequence[Request], batch: int) -> list[list[int]]:
    """Indices of requests in groups of at most `batch` with the same number of images."""
    by_count: dict[int, list[int]] = {}
    for i, request in enumerate(requests):
        by_count.setdefault(len(request.images), []).append(i)
    return [
        indices[start : start + batch]
        for indices in by_count.values()
        for start in range(0, len(indices), batch)
    ]


@contextlib.contextmanager
def _memory_errors(batch: int) -> Iterator[None]:
    """Says what to do when a batch does not fit on the device."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"the device has too little memory for {batch} items at once: use a smaller batch."
        ) from error


def _to_image(pixels: np.ndarray) -> Image.Image:
    from PIL import Image

    return Image.fromarray(pixels)
