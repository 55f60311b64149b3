"""From config to parts: sizes that do not fit each other are refused before any compilation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import pytest

from unialign_jax.data import prepared
from unialign_jax.data.tokenizer import TextTokenizer
from unialign_jax.errors import UserError
from unialign_jax.training.describe import bytes_per_device, describe, readable
from unialign_jax.training.setup import make_setup


@pytest.fixture
def tokenizer(photos: Path) -> TextTokenizer:
    return TextTokenizer.from_file(prepared.Prepared(photos).tokenizer_path())


def test_the_abstract_state_is_what_init_makes(tiny: dict, tokenizer: TextTokenizer) -> None:
    tiny["mesh"] = {"data": 1, "fsdp": 4, "context": 1, "tensor": 2}
    setup = make_setup(tiny, tokenizer)
    state = setup.init()
    assert jax.tree.structure(state) == jax.tree.structure(setup.abstract)
    for leaf, abstract in zip(jax.tree.leaves(state), jax.tree.leaves(setup.abstract), strict=True):
        assert leaf.shape == abstract.shape and leaf.dtype == abstract.dtype
        assert leaf.sharding.is_equivalent_to(abstract.sharding, leaf.ndim)
    assert set(state.ema) == {"transformer"}  # the text encoder is frozen
    assert setup.step.tokens.mask_id == tokenizer.mask_id


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("model", "vocab_size", 100, "model.vocab_size is 100, but the tokenizer of the data has"),
        ("model", "text_width", 24, "model.text_width is 24 and text_encoder.width is 16"),
        (
            "model",
            "patch_size",
            3,
            "data.image_size 16 is not a multiple of 3 pixels (model.patch_size 3",
        ),
        ("model", "channels", 16, "model.channels is 16"),
        ("model", "heads", 0, "heads is 0: at least 1"),
        ("objective", "align_depth", 9, "objective.align_depth is 9: a block from 1 to"),
        ("ema", "decay", 2.0, "ema.decay is 2.0: from 0 to below 1"),
        ("optimizer", "learning_rate", -1.0, "learning_rate, weight_decay and warmup_steps"),
        ("model", "widht", 3, "unknown config key `model.widht`; the nearest is `model.width`"),
        ("train", "global_batch", 12, "12 samples cannot be split over 8 devices"),
        ("train", "micro_batches", 3, "is not a multiple of train.micro_batches 3"),
        ("train", "steps", 0, "train.steps is 0: at least 1"),
        ("checkpoint", "every_steps", 0, "checkpoint.every_steps is 0: at least 1"),
        ("mesh", "fsdp", 3, "mesh.fsdp=3"),
        ("objective", "image_weighting", "x", "objective.image_weighting is 'x'; one of"),
        ("optimizer", "decay_steps", 1, "decay_steps=1 must exceed warmup_steps=2"),
    ],
)
def test_a_value_that_cannot_work_is_named(
    tiny: dict, tokenizer: TextTokenizer, section: str, key: str, value: Any, message: str
) -> None:
    tiny[section][key] = value
    with pytest.raises(UserError) as caught:
        make_setup(tiny, tokenizer)
    assert message in str(caught.value)


def test_an_unknown_section_is_named(tiny: dict, tokenizer: TextTokenizer) -> None:
    tiny["optimiser"] = {}
    with pytest.raises(UserError, match="unknown config key `optimiser`; the nearest is `optimi"):
        make_setup(tiny, tokenizer)


def test_a_config_is_described_before_its_data_are_there(tiny: dict) -> None:
    tiny["mesh"] = {"data": 1, "fsdp": 8, "context": 1, "tensor": 1}
    setup = make_setup(tiny, None)
    text = describe(setup, (), ())
    for part in (
        '"width": 32',
        "transformer/blocks/layers/image/up/kernel",
        "text_encoder: 6,720 (frozen)",
        "uint8 [8, 16, 16, 3]",
        "memory per device, 8 device(s) (data 1, fsdp 8",
        "no data set at",
    ):
        assert part in text
    kernel = setup.abstract.params["transformer"]["blocks"]["layers"]["image"]["up"]["kernel"]
    assert bytes_per_device(kernel) == 2 * 32 * 128 * 4 // 8
    assert readable(3 << 29) == "1.50 GiB" and readable(1 << 20) == "1.00 MiB"
