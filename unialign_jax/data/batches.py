"""Records to the arrays of a training step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from unialign_jax.data import images
from unialign_jax.data.tasks import TRAINING_TASKS, Record
from unialign_jax.data.tokenizer import TextTokenizer

Example = dict[str, Any]
Batch = dict[str, Any]

FEATURES = ("image_features", "text_features")


def make_example(
    record: Record,
    tokenizer: TextTokenizer,
    *,
    image_size: int,
    text_length: int,
    caption: int = 0,
) -> Example:
    """One record as arrays.

    With R = image_size and L = text_length: `target` uint8 [R, R, 3], `conditions` tuple of the
    same, `instruction_ids` and `caption_ids` int32 [L], `caption_weight` 0 or 1, `label_mask`
    bool [L] or None, `id`, `truncated` (texts cut to L).

    Args:
        record: what to convert.
        tokenizer: makes the ids.
        image_size: R.
        text_length: L.
        caption: which of the record's captions.

    Raises:
        BadItem: when an image cannot be decoded.
    """
    plan = TRAINING_TASKS[record.task]
    label_mask = None
    text = record.captions[caption] if record.captions else ""
    if plan.text == "turns":
        caption_ids, label_mask, cut = tokenizer.encode_turns(record.turns, text_length)
        weight = 1.0
    else:
        caption_ids, cut = tokenizer.encode(text, text_length)
        # Without a caption the text branch of this record is left out of the loss.
        weight = float(bool(record.captions))
    prompts = {"caption": text, "instruction": record.instruction, None: ""}
    instruction_ids, prompt_cut = tokenizer.encode(prompts[plan.prompt], text_length)
    return {
        "target": images.to_pixels(images.decode(record.target), image_size),
        "conditions": tuple(
            images.to_pixels(images.decode(data), image_size) for data in record.conditions
        ),
        "instruction_ids": instruction_ids,
        "caption_ids": caption_ids,
        "caption_weight": weight,
        "label_mask": label_mask,
        "id": record.id,
        # For `generate` both texts are the same one: it counts once.
        "truncated": int(cut) + int(prompt_cut and plan.prompt == "instruction"),
    }


def collate(examples: Sequence[Example]) -> Batch:
    """Stacks examples of one stream.

    Returns:
        `target` uint8 [b, R, R, 3]; `conditions`, a tuple of the same; `instruction_ids` and
        `caption_ids` int32 [b, L]; `caption_weight` float32 [b]; `label_mask` bool [b, L] or
        None; `ids`, a list of b strings. Where the examples carry a teacher's features, also
        `image_features` [b, A] or [b, rows, columns, A] and `text_features` [b, A].
    """

    def stack(key: str) -> np.ndarray:
        return np.stack([example[key] for example in examples])

    count = len(examples[0]["conditions"])
    return {
        "target": stack("target"),
        "conditions": tuple(
            np.stack([example["conditions"][k] for example in examples]) for k in range(count)
        ),
        "instruction_ids": stack("instruction_ids"),
        "caption_ids": stack("caption_ids"),
        "caption_weight": np.asarray([e["caption_weight"] for e in examples], np.float32),
        "label_mask": None if examples[0]["label_mask"] is None else stack("label_mask"),
        "ids": [example["id"] for example in examples],
        **{key: stack(key) for key in FEATURES if key in examples[0]},
    }
