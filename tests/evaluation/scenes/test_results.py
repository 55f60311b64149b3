"""Results on disk and as a table."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.evaluation.scenes.stand_ins import Noise, Oracle
from unialign_jax.data.sources.scenes.world import LEVELS
from unialign_jax.errors import UserError
from unialign_jax.evaluation.scenes.evaluation import evaluate
from unialign_jax.evaluation.scenes.results import (
    ITEMS_FILE,
    SCORES_FILE,
    load_shown,
    save,
    shown,
)
from unialign_jax.evaluation.scenes.table import table

DEMO = LEVELS["demo"]


@pytest.fixture(scope="module")
def evaluation():
    return evaluate(Oracle(DEMO, 16, 5), DEMO, 16, 5, training_examples=10)


def test_every_item_has_a_line(evaluation, tmp_path):
    save(evaluation, tmp_path / "new" / "folder")
    lines = (tmp_path / "new" / "folder" / ITEMS_FILE).read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert len(found) == 6 * 5
    by_task = {line["task"]: line for line in found}
    assert all(line["right"] is True and line["score"] == 1 for line in found)
    assert by_task["generate"]["read"] == by_task["generate"]["truth"]
    assert set(by_task["caption"]["truth"]) == {"background", "things"}
    assert by_task["caption"]["said"]
    assert by_task["answer"]["said"] == by_task["answer"]["truth"]
    assert by_task["answer"]["question"].endswith("?")
    assert by_task["edit"]["kept"] is True
    assert by_task["edit"]["kind"] in by_task["edit"]["id"] or by_task["edit"]["instruction"]
    assert "read" not in by_task["perceive"]


def test_scores_are_written_as_they_are(evaluation, tmp_path):
    save(evaluation, tmp_path)
    assert json.loads((tmp_path / SCORES_FILE).read_text()) == evaluation.scores


def test_shown_items_come_back_from_disk(evaluation, tmp_path):
    save(evaluation, tmp_path, count=2)
    kept, loaded = shown(evaluation, 2), load_shown(tmp_path)
    assert [item.task for item in loaded] == [t for t in evaluation.scores["scores"] for _ in "12"]
    for a, b in zip(kept, loaded, strict=True):
        assert (a.id, a.kind, a.text, a.truth_text, a.made_text) == (
            *(b.id, b.kind, b.text, b.truth_text, b.made_text),
        )
        assert (a.score, a.right) == (b.score, b.right) == (1, True)
        assert len(a.sources) == len(b.sources)
        pictures = zip((*a.sources, a.truth, a.made), (*b.sources, b.truth, b.made), strict=True)
        assert all((x is None and y is None) or np.array_equal(x, y) for x, y in pictures)


def test_a_second_evaluation_replaces_the_first(evaluation, tmp_path):
    save(evaluation, tmp_path)
    worse = evaluate(Noise(16), DEMO, 16, 2, training_examples=5)
    save(worse, tmp_path, count=1)
    assert len(load_shown(tmp_path)) == 6
    assert json.loads((tmp_path / SCORES_FILE).read_text())["items"] == 2
    assert len((tmp_path / ITEMS_FILE).read_text().splitlines()) == 12


def test_results_that_are_not_there_are_named(tmp_path):
    with pytest.raises(UserError, match=r"shown\.json: cannot be read"):
        load_shown(tmp_path)


def test_a_folder_that_cannot_be_made_is_named(evaluation, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        save(evaluation, tmp_path / "file" / "folder")


def test_the_table_names_the_level_and_every_score_with_its_baselines(evaluation):
    lines = table(evaluation.scores).splitlines()
    assert "level demo, 16 pixels" in lines[0]
    assert "held-out combinations" in lines[0]
    for name in ("score", "95 % interval", "majority", "nearest", "copy"):
        assert name in lines[1]
    assert [line.split()[0] for line in lines[2:]] == list(evaluation.scores["scores"])
    assert all(line.split()[1] == "100.0" for line in lines[2:])
    # Wilson's interval of five of five.
    assert "56.6 to 100.0" in lines[2]
