"""The whole examination, of a model that knows the truth and of one that knows nothing."""

from __future__ import annotations

import json

import pytest

from tests.evaluation.scenes.stand_ins import Noise, Oracle
from unialign_jax.data.sources.scenes.edits import KINDS
from unialign_jax.data.sources.scenes.world import LEVELS
from unialign_jax.data.tasks import Task
from unialign_jax.evaluation.scenes.evaluation import evaluate

ITEMS = 24


@pytest.fixture(scope="module", params=[("demo", 16, "held_out"), ("full", 32, "seen")])
def perfect(request):
    level, pixels, split = request.param
    oracle = Oracle(LEVELS[level], pixels, ITEMS, seed=2, split=split)
    return evaluate(
        oracle,
        LEVELS[level],
        pixels,
        ITEMS,
        seed=2,
        split=split,
        batch=10,
        training_examples=60,
    )


@pytest.fixture(scope="module")
def ignorant():
    return evaluate(Noise(16), LEVELS["demo"], 16, ITEMS, training_examples=60)


def test_the_truth_scores_1_on_every_task(perfect):
    assert perfect.scores["scores"] == {str(task): 1.0 for task in Task}
    for task, details in perfect.scores["details"].items():
        assert details["items"] == ITEMS
        low, high = details["interval"]
        assert low > 0.85
        assert high == pytest.approx(1)
        assert sum(kind["items"] for kind in details["by_kind"].values()) == ITEMS
        assert all(kind["score"] == 1 for kind in details["by_kind"].values())
        if task not in ("answer", "perceive"):
            assert set(details["by_attribute"].values()) == {1.0}


def test_noise_scores_nothing(ignorant):
    scores = dict(ignorant.scores["scores"])
    assert scores.pop("perceive") < 0.2
    assert set(scores.values()) == {0.0}
    assert ignorant.scores["details"]["caption"]["unparseable"] == 1


def test_the_layout_is_what_reports_read(ignorant):
    scores = ignorant.scores
    assert {key: scores[key] for key in ("level", "pixels", "items", "seed", "split")} == {
        "level": "demo",
        "pixels": 16,
        "items": ITEMS,
        "seed": 0,
        "split": "held_out",
    }
    assert scores == json.loads(json.dumps(scores))
    for task in Task:
        assert {"majority", "nearest"} <= set(scores["baselines"][task])
    edits = scores["details"]["edit"]
    assert set(edits["by_kind"]) <= set(KINDS)
    assert {"right", "kept"} <= set(edits)
    assert set(scores["details"]["perceive"]["by_kind"]) == {"segment", "depth", "edges"}
    assert set(scores["details"]["compose"]["by_kind"]) == {"1 reference", "2 references"}


def test_confusion_is_of_what_was_generated_and_described(perfect):
    scenes = [
        verdict.item.example.truth
        for task in (Task.GENERATE, Task.CAPTION)
        for verdict in perfect.verdicts[task]
    ]
    for name, table in perfect.scores["confusion"].items():
        total = sum(map(sum, table["counts"]))
        assert total == (
            len(scenes) if name == "background" else sum(len(scene.things) for scene in scenes)
        )


def test_held_out_combinations_are_beyond_the_exact_baselines(ignorant):
    for task in ("generate", "caption"):
        assert set(ignorant.scores["baselines"][task].values()) == {0.0}
    assert ignorant.scores["baselines"]["answer"]["majority"] > 0


def test_tasks_can_be_chosen():
    found = evaluate(
        Noise(16), LEVELS["demo"], 16, 3, tasks=[Task.ANSWER], training_examples=5, batch=3
    )
    assert list(found.scores["scores"]) == ["answer"]
    assert found.scores["confusion"] == {}


def test_baselines_can_be_left_out():
    found = evaluate(Noise(16), LEVELS["demo"], 16, 2, tasks=[Task.EDIT], training_examples=0)
    assert found.scores["scores"] == {"edit": 0.0}
    assert found.scores["baselines"] == {"edit": {}}


def test_progress_counts_every_item():
    counted = []
    evaluate(Noise(16), LEVELS["demo"], 16, 5, training_examples=5, batch=2, advance=counted.append)
    assert sum(counted) == 5 * len(Task)
