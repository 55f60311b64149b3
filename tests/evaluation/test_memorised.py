"""Scores of a data set learnt by heart, on made-up answers."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from unialign_jax.data.tasks import Record, Task
from unialign_jax.evaluation.memorised import Recall, psnr, score


def recall(level: int, made: int, caption: str) -> Recall:
    truth = np.full((4, 4, 3), level, np.uint8)
    picture = Image.new("RGB", (4, 4), (made, made, made))
    record = Record(
        id=f"r{level}",
        task=Task.GENERATE,
        target=b"",
        height=4,
        width=4,
        captions=(f"grey {level}",),
    )
    return Recall(record, None, truth, picture, caption, psnr(picture, truth))


def test_psnr_is_that_of_8_bit_pictures() -> None:
    truth = np.full((2, 2, 3), 100, np.uint8)
    # An error of 10 everywhere: 10 log10(255^2 / 100).
    assert psnr(truth + 10, truth) == pytest.approx(28.1308, abs=1e-4)
    assert psnr(truth, truth) > 140


def test_a_picture_counts_when_its_nearest_target_is_its_own() -> None:
    right, wrong = recall(0, 60, "grey 0"), recall(200, 90, "grey 0")
    scores = score({"generate": [right, wrong], "edit": []})
    assert scores.generate == 0.5
    assert scores.caption == 0.5
    assert scores.edit == 0.0
    assert scores.psnr_generate == pytest.approx((right.psnr + wrong.psnr) / 2)
    # The mean picture is 100 away from both.
    assert scores.psnr_mean_picture == pytest.approx(8.1308, abs=1e-4)
