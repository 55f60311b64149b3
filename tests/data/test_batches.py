"""Which text and which image of a record go where in a batch."""

from __future__ import annotations

import numpy as np
import pytest

from unialign_jax.data import images
from unialign_jax.data.batches import collate, make_example
from unialign_jax.data.tasks import TRAINING_TASKS, BadItem, Task

SIZE, LENGTH = 16, 24


def example_of(record, tokenizer, **more):
    return make_example(record, tokenizer, image_size=SIZE, text_length=LENGTH, **more)


def ids(tokenizer, text):
    return tokenizer.encode(text, LENGTH)[0]


@pytest.mark.parametrize("task", TRAINING_TASKS)
def test_every_task_gives_arrays_of_the_same_kinds(make_record, tokenizer, task):
    examples = [example_of(make_record(task, seed), tokenizer) for seed in range(3)]
    batch = collate(examples)
    count = len(make_record(task).conditions)
    assert batch["target"].shape == (3, SIZE, SIZE, 3)
    assert batch["target"].dtype == np.uint8
    assert isinstance(batch["conditions"], tuple)
    assert [c.shape for c in batch["conditions"]] == [(3, SIZE, SIZE, 3)] * count
    for key in ("instruction_ids", "caption_ids"):
        assert batch[key].shape == (3, LENGTH)
        assert batch[key].dtype == np.int32
    assert batch["caption_weight"].dtype == np.float32
    assert batch["caption_weight"].tolist() == [1, 1, 1]
    assert (batch["label_mask"] is not None) == (task is Task.ANSWER)
    assert batch["ids"] == [f"{task}-{seed}" for seed in range(3)]


def test_images_are_cut_as_the_reference_does(make_record, tokenizer, picture):
    record = make_record(Task.EDIT, 4)
    example = example_of(record, tokenizer)
    expected = images.to_pixels(images.decode(picture(4)), SIZE)
    np.testing.assert_array_equal(example["target"], expected)
    expected = images.to_pixels(images.decode(picture(1004)), SIZE)
    np.testing.assert_array_equal(example["conditions"][0], expected)


def test_generate_uses_one_caption_as_prompt_and_as_text(make_record, tokenizer):
    record = make_record(captions=("a cat", "a dog"))
    for index, caption in enumerate(record.captions):
        example = example_of(record, tokenizer, caption=index)
        np.testing.assert_array_equal(example["instruction_ids"], ids(tokenizer, caption))
        np.testing.assert_array_equal(example["caption_ids"], ids(tokenizer, caption))


@pytest.mark.parametrize("task", [Task.EDIT, Task.PERCEIVE, Task.COMPOSE])
def test_the_others_use_the_instruction_as_prompt_and_the_caption_as_text(
    make_record, tokenizer, task
):
    example = example_of(make_record(task), tokenizer)
    np.testing.assert_array_equal(example["instruction_ids"], ids(tokenizer, "make it a dog"))
    np.testing.assert_array_equal(example["caption_ids"], ids(tokenizer, "picture of a cat"))


def test_a_record_without_caption_has_weight_0_and_an_empty_text(make_record, tokenizer):
    example = example_of(make_record(Task.EDIT, captions=()), tokenizer)
    assert example["caption_weight"] == 0
    np.testing.assert_array_equal(example["caption_ids"], tokenizer.null_ids(LENGTH)[0])


def test_answer_masks_answers_only_and_has_no_prompt(make_record, tokenizer):
    example = example_of(make_record(Task.ANSWER), tokenizer)
    question = tokenizer.pieces("Q: what is it? A: ")
    assert example["caption_ids"][: len(question)].tolist() == question
    assert not example["label_mask"][: len(question)].any()
    assert example["label_mask"][len(question) :].all()
    np.testing.assert_array_equal(example["instruction_ids"], tokenizer.null_ids(LENGTH)[0])


def test_cut_texts_are_counted_once_each(make_record, tokenizer):
    long = "picture of a cat " * 9
    count = {
        "generate": example_of(make_record(captions=(long,)), tokenizer)["truncated"],
        "caption": example_of(make_record(Task.EDIT, captions=(long,)), tokenizer)["truncated"],
        "both": example_of(make_record(Task.EDIT, captions=(long,), instruction=long), tokenizer)[
            "truncated"
        ],
        "none": example_of(make_record(Task.EDIT), tokenizer)["truncated"],
    }
    assert count == {"generate": 1, "caption": 1, "both": 2, "none": 0}


def test_an_undecodable_image_is_a_bad_item(make_record, tokenizer):
    for changes in ({"target": b"junk"}, {"conditions": (b"junk",)}):
        with pytest.raises(BadItem, match="undecodable"):
            example_of(make_record(Task.EDIT, **changes), tokenizer)
