"""What is gathered for a report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.reporting.made_up import SCORES, STEPS, TINY, write_run
from unialign_jax import config as configs
from unialign_jax.bundle.contents import read_description
from unialign_jax.bundle.shipped import find_model
from unialign_jax.errors import UserError
from unialign_jax.models.functional import count_parameters
from unialign_jax.reporting import material as materials
from unialign_jax.reporting.material import Making, gather
from unialign_jax.reporting.report import render
from unialign_jax.sampling.model import build_model


def test_everything_that_is_there_is_gathered(folder, material):
    assert material.steps == STEPS
    assert material.images_per_second == 16.0
    assert material.scores["scores"] == SCORES
    assert len(material.shown) == 18
    assert material.lines["edit", "edit-0"]["kind"] == "recolour"
    assert [step for step, _ in material.grids] == [STEPS // 2, STEPS]
    assert material.reference == [] and material.over_time == []
    model = build_model(configs.to_plain(configs.load_config(str(TINY))), None)
    networks = (model.transformer.abstract, model.text_encoder.abstract)
    assert material.parameters == sum(map(count_parameters, networks))
    assert {"unialign_jax", "Python", "jax", "devices"} <= set(material.versions)


def test_training_time_follows_from_the_rates_where_it_was_not_measured(folder):
    # 40 steps of 8 images at 16 a second.
    assert gather(folder / "run", None).train_seconds == pytest.approx(STEPS * 8 / 16)
    measured = gather(folder / "run", None, Making(train_seconds=99.0))
    assert measured.train_seconds == 99.0


def test_scores_over_time_are_found_beside_the_scores_or_the_run(folder, tmp_path):
    copy = tmp_path / "demo"
    shutil.copytree(folder, copy)
    line = {"step": 10, "seconds": 60.0, "scores": {"edit": 0.5}}
    for place in (copy, copy / "run", copy / "scores"):
        line["step"] += 1
        (place / "scores_over_time.jsonl").write_text(json.dumps(line) + "\n")
        assert gather(copy / "run", copy / "scores").over_time == [line]
    later, sooner = line | {"step": 9}, line | {"step": 8}
    path = copy / "scores" / "scores_over_time.jsonl"
    path.write_text(f"{json.dumps(later)}\n{json.dumps(sooner)}\n")
    assert gather(copy / "run", copy / "scores").over_time == [sooner, later]


def test_the_reference_curve_is_found_by_the_name_of_the_config(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(materials, "PACKAGE", tmp_path / "package")
    kept = tmp_path / "docs" / "results" / "scenes_demo_curve.json"
    kept.parent.mkdir(parents=True)
    kept.write_text(json.dumps([{"step": 1, "loss": 3.0}]))
    assert gather(folder / "run", None, Making("scenes:demo")).reference[0]["loss"] == 3.0
    assert gather(folder / "run", None, Making("scenes:full")).reference == []
    assert gather(folder / "run", None).reference == []
    assert len(gather(folder / "run", None, None, kept).reference) == 1


def test_many_sample_grids_are_thinned_and_the_last_stays(tmp_path):
    run = write_run(tmp_path)
    for step in range(100, 130):
        (run / "samples" / f"step_{step:08d}.png").write_bytes(b"")
    steps = [step for step, _ in gather(run, None).grids]
    assert len(steps) == materials.MOST_GRIDS and steps[0] == STEPS // 2 and steps[-1] == 129


@pytest.mark.parametrize("broken", ["run", "scores", "metrics", "reference"])
def test_what_is_missing_is_named(folder, tmp_path, broken):
    run, scores, reference = folder / "run", folder / "scores", None
    if broken == "run":
        run = tmp_path
    elif broken == "scores":
        scores = tmp_path
    elif broken == "reference":
        reference = tmp_path / "curve.json"
        reference.write_text("{}")
    else:
        run = write_run(tmp_path)
        (run / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match=str(tmp_path)):
        gather(run, scores, None, reference)


def test_the_bundle_that_comes_with_the_package_has_a_report_without_a_run(folder):
    found = gather(Path("scenes"), folder / "scores")
    assert found.metrics == [] and found.grids == [] and found.reference == []
    assert found.making.config == "scenes:demo"
    assert found.steps == read_description(find_model("scenes"))["made_from"]["step"] > 0
    assert found.train_seconds is None
    page = render(found)
    assert f"{found.steps:,}" in page and 'id="training"' not in page


def test_a_run_that_logged_nothing_yet_is_refused(folder, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(folder / "run", copy)
    (copy / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="has the run logged a step"):
        gather(copy, None)
