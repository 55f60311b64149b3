"""Sample grids during training, from a prepared data set and a train state."""

from __future__ import annotations

import types

import jax
import numpy as np
import pytest

from tests.sampling.conftest import CAPTIONS, CONFIG, photograph
from unialign_jax.data import images, prepared, records
from unialign_jax.data.tasks import Record, Task, Turn
from unialign_jax.sampling.training_grid import (
    TITLES,
    SampleGrid,
    make_example,
    make_sample_grid,
    record_examples,
)


def record(index: int, task: Task = Task.GENERATE, **fields) -> Record:
    return Record(
        id=str(index),
        task=task,
        target=images.encode(photograph(index)),
        height=20,
        width=30,
        captions=(CAPTIONS[index % 4],),
        **fields,
    )


@pytest.fixture
def data(tmp_path, run):
    """A data set of three captioned photographs, one undecodable, and one edit."""
    streams = {
        "generate": [
            record(0),
            record(1).__class__(**{**record(1).__dict__, "target": b"no image"}),
            record(2),
        ],
        "edit": [
            record(3, Task.EDIT, conditions=(images.encode(photograph(4)),), instruction="turn it")
        ],
    }
    info = []
    for name, entries in streams.items():
        file = records.stream_directory(tmp_path, name) / records.shard_name(name, 0, 1)
        shard = records.write_shard(file, entries)
        info.append(
            {
                "name": name,
                "task": name,
                "conditions": int(name == "edit"),
                "examples": len(entries),
                "shards": [shard._asdict()],
            }
        )
    prepared.write_json(
        tmp_path / prepared.DATASET_FILE,
        {"schema_version": records.SCHEMA_VERSION, "streams": info},
    )
    return tmp_path


def test_a_grid_has_a_row_per_record_and_is_drawn_from_the_average(pipe, data):
    config = {**CONFIG, "data": {**CONFIG["data"], "path": str(data)}}
    config["sample"] = {**CONFIG["sample"], "prompts": ["a red ball"], "steps": 1}
    setup = types.SimpleNamespace(config=config)
    sample_grid = make_sample_grid(setup, pipe.model.tokenizer)
    encoder = {"text_encoder": pipe.params["text_encoder"]}
    state = types.SimpleNamespace(
        params={"transformer": jax.tree.map(np.zeros_like, pipe.params["transformer"]), **encoder},
        ema={"transformer": pipe.params["transformer"]},
    )
    image = sample_grid(state, 10)
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[1] > len(TITLES) * 128
    assert image.shape[0] > 4 * 80, "a prompt, two photographs, an edit"
    np.testing.assert_array_equal(image, sample_grid(state, 20), "always from the same noise")


def test_records_that_cannot_be_read_are_passed_over(pipe, data):
    examples = record_examples(pipe.model, {"path": str(data), "mixture": {"generate": 1.0}})
    assert [example.text for example in examples] == [CAPTIONS[0], CAPTIONS[2]]


def test_questions_are_asked_once_in_the_form_of_training(pipe):
    turns = (Turn("Q: who? A: ", False), Turn("a cat", True))
    example = make_example(pipe.model, record(0, Task.ANSWER, turns=turns))
    assert example.text == "who?"
    assert example.request.given == len(pipe.model.tokenizer.pieces("Q: who? A: "))


def test_sampled_texts_come_with_the_grid(pipe):
    example = make_example(pipe.model, record(0))
    grid = SampleGrid(pipe.model, [example])
    _, texts = grid.draw(pipe.params)
    assert list(texts) == [CAPTIONS[0]]
    assert isinstance(texts[CAPTIONS[0]], str)
