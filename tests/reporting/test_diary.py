"""The diary of a demo."""

from __future__ import annotations

import pytest

from unialign_jax.errors import UserError
from unialign_jax.reporting.diary import Diary


def test_it_is_kept_and_read_back(tmp_path):
    assert Diary.load(tmp_path) is None
    diary = Diary({"config": "scenes:demo", "minutes": 2.5}, steps=40, starts=1)
    diary.remember("unialign train")
    diary.remember("unialign train")
    diary.spend("train", 2.0)
    diary.spend("train", 3.0)
    diary.save(tmp_path)
    assert Diary.load(tmp_path) == diary
    assert diary.commands == ["unialign train"]
    making = diary.making()
    assert making.config == "scenes:demo" and making.train_seconds == 5.0


@pytest.mark.parametrize("content", ["{", "[1]", '{"other": 1}'])
def test_a_damaged_one_is_named(tmp_path, content):
    (tmp_path / "demo.json").write_text(content)
    with pytest.raises(UserError, match=r"demo\.json.*Delete it"):
        Diary.load(tmp_path)
