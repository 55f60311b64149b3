"""`unialign evaluate scenes`: a run directory in, scores and a table out."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import jax
import pytest

from tests.sampling.conftest import CONFIG, random_state
from unialign_jax import cli
from unialign_jax.commands.evaluate import TASKS, find_world
from unialign_jax.data.sources.scenes.examples import all_texts
from unialign_jax.data.sources.scenes.world import LEVELS
from unialign_jax.data.tasks import Task
from unialign_jax.data.tokenizer import word_tokenizer
from unialign_jax.errors import UsageError, UserError
from unialign_jax.evaluation.scenes.results import load_shown
from unialign_jax.training.checkpoints import Checkpoints
from unialign_jax.training.run_directory import RunDirectory
from unialign_jax.training.setup import make_setup

STEP = 4


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of random weights on scenes of level `demo`, with its data's description."""
    folder = tmp_path_factory.mktemp("scenes")
    source = {"name": "scenes", "level": "demo", "pixels": 16, "seed": 0}
    (folder / "data").mkdir()
    (folder / "data" / "dataset.json").write_text(json.dumps({"source": source}))
    tokenizer = word_tokenizer(all_texts(LEVELS["demo"]))
    tokenizer.save(folder / "tokenizer.json")
    config = copy.deepcopy(CONFIG)
    config["data"] |= {"path": str(folder / "data"), "image_size": 16}
    config["model"]["vocab_size"] = config["text_encoder"]["vocab_size"] = tokenizer.vocab_size
    config["sample"] |= {"steps": 2, "guidance": 1.0, "text_steps": 2}
    setup = make_setup(config, tokenizer, jax.devices()[:1])
    directory = RunDirectory(folder / "run")
    directory.create(config, folder / "tokenizer.json")
    checkpoints = Checkpoints(directory.checkpoints)
    checkpoints.save(random_state(setup.abstract), STEP, config, {"next_step": STEP})
    checkpoints.close()
    return directory.path


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNIALIGN_COMPILATION_CACHE", str(tmp_path_factory.mktemp("compiled")))
        yield


def evaluate(run: Path, *options: object) -> int:
    return cli.main(["evaluate", "scenes", "--model", str(run), *map(str, options)])


def test_all_tasks_are_scored_with_the_level_of_the_data(run, capsys):
    assert evaluate(run, "--items", 4) == 0
    table = capsys.readouterr().out
    assert "level demo, 16 pixels, held-out combinations, 4 items per task" in table
    scores = json.loads((run / "scenes_scores" / "scores.json").read_text())
    assert set(scores["scores"]) == set(scores["baselines"]) == set(TASKS)
    for task in TASKS:
        assert f"\n{task} " in table
    assert len((run / "scenes_scores" / "items.jsonl").read_text().splitlines()) == 4 * 6
    assert {item.task for item in load_shown(run / "scenes_scores")} == set(TASKS)


def test_the_same_call_gives_the_same_scores(run, tmp_path, capsys):
    options = ["--items", 4, "--tasks", "answer", "caption", "--seed", 5, "--json"]
    found = []
    for name in ("a", "b"):
        assert evaluate(run, *options, "--out", tmp_path / name) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1]
    assert found[0] == json.loads((tmp_path / "b" / "scores.json").read_text())
    # In the order of the tasks, whatever that of the call.
    assert list(found[0]["scores"]) == ["caption", "answer"]


def test_items_can_be_of_combinations_that_training_shows(run, tmp_path, capsys):
    options = ["--items", 4, "--tasks", "answer", "--split", "seen", "--out", tmp_path]
    assert evaluate(run, *options, "--weights", "raw", "--step", STEP) == 0
    assert "combinations of training" in capsys.readouterr().out


def test_the_tasks_of_the_command_are_those_of_the_package():
    assert list(TASKS) == [str(task) for task in Task]


def changed(run: Path, folder: Path, **data: object) -> Path:
    """A copy of the run's config with other data."""
    config = json.loads((run / "config.json").read_text())
    config["data"] |= data
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_run_of_other_data_needs_a_level(run, tmp_path):
    (tmp_path / "dataset.json").write_text(json.dumps({"source": {"name": "jsonl"}}))
    for path in (tmp_path, tmp_path / "gone"):
        with pytest.raises(UserError, match=r"dataset\.json.*--level demo"):
            find_world(changed(run, tmp_path, path=str(path)), None, None)
    level, pixels = find_world(changed(run, tmp_path, path="gone"), "demo", None)
    assert (level.name, pixels) == ("demo", 16)


@pytest.mark.parametrize(
    ("level", "pixels", "message"),
    [
        ("dmo", None, "no level 'dmo'"),
        ("full", None, "trained at 16 pixels; level full is drawn at 32, 64, 128"),
        (None, 32, "makes images of 16 pixels"),
    ],
)
def test_a_world_that_does_not_fit_the_model_is_refused(run, level, pixels, message):
    with pytest.raises(UsageError, match=message):
        find_world(run, level, pixels)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--model", "nowhere"], 1, "nowhere"),
        (["--items", "0"], 2, "not at least 1"),
        (["--tasks", "paint"], 2, "'paint'"),
        (["--split", "all"], 2, "'all'"),
        (["--seed", "-1"], 2, "32 bits"),
        (["--item", "3"], 2, "--items"),
    ],
)
def test_wrong_calls_say_what_is_wrong(run, options, code, message, capsys):
    assert evaluate(run, *options) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_target_is_needed(capsys):
    assert cli.main(["evaluate"]) == 2
    assert "TARGET" in capsys.readouterr().err
