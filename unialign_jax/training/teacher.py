"""Training the scenes teacher: a small dual encoder, from the records themselves, in seconds.

It reads images and captions of the `generate` records and learns by the symmetric contrastive loss
which belong together. Some records are held apart to say how well it finds their captions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unialign_jax.caching.scenes_teacher import ScenesTeacher, text_mask
from unialign_jax.data import images
from unialign_jax.data.prepared import Prepared
from unialign_jax.data.records import RecordError
from unialign_jax.data.tasks import BadItem, Task
from unialign_jax.data.tokenizer import TextTokenizer
from unialign_jax.diffusion import alignment
from unialign_jax.errors import UserError
from unialign_jax.models.teachers import scenes

if TYPE_CHECKING:
    from jaxtyping import Int32, UInt8

FEWEST_RECORDS = 8
LONGEST_TEXT = 128


@dataclasses.dataclass(frozen=True)
class TeacherOptions:
    """How the teacher is trained.

    Attributes:
        seed: of the parameters, the records held apart and the batches.
        steps: of the optimiser; None: 120 up to 16 pixels, 300 above, where there is more to see.
        batch: records per step, each other's negatives.
        learning_rate: highest value, after a tenth of the steps; a cosine leads to 0.
        held_apart: records that are only tested on; at most a quarter of all.
        most_records: of a larger data set, so many are read.
    """

    seed: int = 0
    steps: int | None = None
    batch: int = 96
    learning_rate: float = 3e-3
    held_apart: int = 64
    most_records: int = 8192


@dataclasses.dataclass(frozen=True)
class _Examples:
    """Images, and the ids of every caption of each."""

    pixels: UInt8[np.ndarray, "M P P 3"]
    captions: Sequence[Int32[np.ndarray, "C L"]]

    def __len__(self) -> int:
        return len(self.captions)

    def part(self, start: int, stop: int) -> _Examples:
        return _Examples(self.pixels[start:stop], self.captions[start:stop])


def train_teacher(
    data: Prepared,
    options: TeacherOptions,
    *,
    on_start: Callable[[int], None] = lambda total: None,
    advance: Callable[[int], None] = lambda count: None,
) -> ScenesTeacher:
    """Trains a teacher on a data set; the same data and options give the same weights.

    Args:
        data: must have `generate` records with captions, and a tokenizer.
        options: see `TeacherOptions`.
        on_start: called once with the number of steps.
        advance: called with the number of steps done since the last call.

    Returns:
        The teacher. `training` holds the options, the data set's fingerprint, the last loss, and
        `retrieval`: for which share of the records held apart the caption nearest to the image,
        among one caption of each of them, is one of its own.

    Raises:
        UserError: too few records to learn from, or a loss that is not finite.
    """
    tokenizer = TextTokenizer.from_file(data.tokenizer_path())
    examples, side, length = _read(data, tokenizer, options)
    apart = min(options.held_apart, len(examples) // 4)
    held, seen = examples.part(0, apart), examples.part(apart, len(examples))
    steps = options.steps or (120 if side <= 16 else 300)
    patch = 4 if side < 32 else side // 8
    config = scenes.DualEncoderConfig(side, patch, tokenizer.vocab_size)
    network = scenes.build(config)
    # Run once: the seconds that the compiler would spend on making it fast are the larger part.
    init = jax.jit(network.init, compiler_options={"xla_backend_optimization_level": 0})
    params = init(jax.random.key(options.seed))
    rate = optax.warmup_cosine_decay_schedule(
        0.0, options.learning_rate, max(1, steps // 10), max(2, steps)
    )
    tx = optax.adam(rate, b2=0.98)
    opt_state = tx.init(params)

    def loss(params: Any, pixels: Any, ids: Any, mask: Any) -> Any:
        model = network.bind(params)
        return alignment.contrastive_loss(
            model.image_features(pixels),
            model.text_features(ids, mask),
            temperature=model.temperature,
        )

    @jax.jit
    def step(params: Any, opt_state: Any, *batch: Any) -> tuple[Any, Any, Any]:
        value, grads = jax.value_and_grad(loss)(params, *batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    on_start(steps)
    rows, value = min(options.batch, len(seen)), math.nan
    for number in range(steps):
        rng = np.random.default_rng([options.seed, number])
        chosen = rng.choice(len(seen), rows, replace=False)
        ids = np.stack([rng.choice(seen.captions[k]) for k in chosen])
        mask = text_mask(ids, tokenizer.end_id)
        params, opt_state, value = step(params, opt_state, seen.pixels[chosen], ids, mask)
        # Waited for, so that the bar tells the truth; a step is too long for it to cost anything.
        value = float(value)
        if not math.isfinite(value):
            raise UserError(
                f"the teacher's loss is {value} after step {number + 1}: try another --seed"
            )
        advance(1)
    training = dataclasses.asdict(options) | {
        "steps": steps,
        "data": data.fingerprint,
        "records": len(seen),
        "tested_on": apart,
        "loss": value,
    }
    teacher = ScenesTeacher(params, config, tokenizer, length, training)
    teacher.training["retrieval"] = _retrieval(teacher, held)
    return teacher


def _read(
    data: Prepared, tokenizer: TextTokenizer, options: TeacherOptions
) -> tuple[_Examples, int, int]:
    """Records in random order, the side of their images, and the ids per text."""
    stream = str(Task.GENERATE)
    source = data.source(stream)
    order = np.random.default_rng(options.seed).permutation(len(source))[: options.most_records]
    side = 0
    pixels, texts = [], []
    for index in order:
        try:
            record = source[int(index)]
            if not record.captions:
                continue
            side = side or _side(min(record.height, record.width))
            pixels.append(images.to_pixels(images.decode(record.target), side))
        except (RecordError, BadItem):
            # Training meets the same record, replaces it and counts it.
            continue
        texts.append(record.captions)
    if len(texts) < FEWEST_RECORDS:
        raise UserError(
            f"{data.directory}: {len(texts)} usable `{stream}` records with a caption; a teacher "
            f"learns from {FEWEST_RECORDS} or more. Prepare more records, or name a trained "
            "teacher with --teacher-dir"
        )
    longest = max(len(tokenizer.pieces(text)) for captions in texts for text in captions) + 1
    length = min(-(-longest // 4) * 4, LONGEST_TEXT)
    captions = [tokenizer.encode_batch(lines, length)[0] for lines in texts]
    return _Examples(np.stack(pixels), captions), side, length


def _side(shorter: int) -> int:
    """The side of the teacher's images for records of this size: a multiple of 8."""
    return min(max(shorter // 8 * 8, scenes.SMALLEST_PIXELS), scenes.LARGEST_PIXELS)


def _retrieval(teacher: ScenesTeacher, held: _Examples) -> float:
    """The share of images whose nearest caption, among the first of each, is their own."""
    first = np.stack([ids[0] for ids in held.captions])
    image = alignment.unit(jnp.asarray(teacher.image_features(held.pixels)), 1e-8)
    text = alignment.unit(jnp.asarray(teacher.id_features(first)), 1e-8)
    nearest = np.argmax(np.asarray(image @ text.T), axis=1)
    # Two records may show the same scene: its caption is right for both.
    hits = [(held.captions[k] == first[found]).all(axis=1).any() for k, found in enumerate(nearest)]
    return float(np.mean(hits))
