"""What goes in: checked, named where it is wrong, and shaped as in training."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from unialign_jax.data import images
from unialign_jax.data.sources.jsonl import _answer_turns
from unialign_jax.data.tasks import Task
from unialign_jax.errors import UserError
from unialign_jax.sampling import requests
from unialign_jax.sampling.requests import PERCEPTION, as_pixels, item_seeds, make_request, pair_up


def test_a_question_is_put_as_training_puts_it():
    line = {"conversations": [{"from": "human", "value": "<image>\nWhat is this?"}]}
    (turn,) = _answer_turns(line)
    assert requests.question_prompt("What is this?") == turn.text


def test_an_answer_begins_where_the_question_ends(pipe, photos):
    request = make_request(pipe.model, Task.ANSWER, "who?", photos[:1])
    tokenizer = pipe.model.tokenizer
    pieces = tokenizer.pieces("Q: who? A: ")
    assert request.given == len(pieces)
    assert request.ids[: request.given].tolist() == pieces
    assert set(request.ids[request.given :].tolist()) == {tokenizer.mask_id}


def test_a_source_is_scaled_and_cut_as_in_training_and_keeps_its_aspect(photos):
    pixels = as_pixels(photos[0], 16)
    assert pixels.shape == (16, 16, 3)
    np.testing.assert_array_equal(pixels, images.to_pixels(photos[0], 16))
    np.testing.assert_array_equal(pixels, as_pixels(np.asarray(photos[0]), 16))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        "cat.png",
        None,
    ],
)
def test_what_is_no_image_is_refused_by_name(image):
    with pytest.raises(UserError, match=r"PIL image or a uint8 array \[H, W, 3\], not"):
        as_pixels(image, 16)


def test_an_image_that_cannot_be_decoded_is_refused(tmp_path, photos):
    path = tmp_path / "cut.png"
    photos[0].save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="cannot be decoded"), Image.open(path) as image:
        as_pixels(image, 16)


@pytest.mark.parametrize(
    ("task", "count", "wanted"),
    [
        (Task.GENERATE, 1, "takes 0"),
        (Task.EDIT, 0, "takes 1"),
        (Task.EDIT, 2, "takes 1"),
        (Task.COMPOSE, 0, "1 to 3"),
        (Task.COMPOSE, 4, "1 to 3"),
    ],
)
def test_a_wrong_number_of_images_is_named(pipe, photos, task, count, wanted):
    with pytest.raises(UserError, match=f"{wanted} image"):
        make_request(pipe.model, task, "do something", photos[:count])


@pytest.mark.parametrize("task", [Task.EDIT, Task.ANSWER, Task.COMPOSE])
def test_an_empty_instruction_is_refused(pipe, photos, task):
    with pytest.raises(UserError, match="is empty"):
        make_request(pipe.model, task, "  ", photos[:1])


def test_half_a_surrogate_pair_is_refused(pipe):
    with pytest.raises(UserError, match="no valid text"):
        make_request(pipe.model, Task.GENERATE, "a \ud800 cat")


def test_a_long_prompt_is_cut_and_says_so(pipe):
    request = make_request(pipe.model, Task.GENERATE, "cat " * 100)
    assert request.truncated
    assert request.ids.shape == (pipe.model.text_length,)
    assert not make_request(pipe.model, Task.GENERATE, "cat").truncated


def test_a_question_without_room_for_an_answer_is_refused(pipe, photos):
    with pytest.raises(UserError, match="shorten it"):
        make_request(pipe.model, Task.ANSWER, "cat " * 100, photos[:1])


def test_a_kind_of_map_becomes_the_sentence_of_training():
    assert requests.perception_instruction("Depth") == PERCEPTION["depth"]
    assert requests.perception_instruction("draw the edges") == "draw the edges"
    with pytest.raises(UserError, match="depth, canny, pose"):
        requests.perception_instruction("detph")


def test_single_inputs_go_with_all_of_the_others():
    assert pair_up(Task.EDIT, "x", ["a", "b"]) == [("x", ["a"]), ("x", ["b"])]
    assert pair_up(Task.EDIT, ["x", "y"], "a") == [("x", ["a"]), ("y", ["a"])]
    assert pair_up(Task.EDIT, ["x", "y"], ["a", "b"]) == [("x", ["a"]), ("y", ["b"])]
    assert pair_up(Task.COMPOSE, "x", ["a", "b"]) == [("x", ["a", "b"])]
    assert pair_up(Task.COMPOSE, "x", [["a"], ["b", "c"]]) == [("x", ["a"]), ("x", ["b", "c"])]
    assert len(pair_up(Task.CAPTION, "", np.zeros((5, 4, 4, 3), np.uint8))) == 5
    assert pair_up(Task.CAPTION, "", []) == []


def test_lists_of_different_lengths_are_refused():
    with pytest.raises(UserError, match="3 item"):
        pair_up(Task.EDIT, ["x", "y"], ["a", "b", "c"])


def test_seeds_are_one_for_all_or_one_each():
    assert item_seeds(5, 2) == [(5, 0), (5, 1)]
    assert item_seeds([5, 6], 2) == [(5, 0), (6, 0)]
    with pytest.raises(UserError, match="1 seeds for 2 items"):
        item_seeds([5], 2)


@pytest.mark.parametrize("seed", [-1, 1 << 32, 1.0, True, "7", None])
def test_a_seed_that_is_no_whole_number_of_32_bits_is_refused(seed):
    with pytest.raises(UserError, match="seed is"):
        requests.check_seed(seed)
