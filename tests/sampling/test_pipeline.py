"""The Python face: results depend on the item and its seed, never on the batch around it."""

from __future__ import annotations

import warnings

import jax
import numpy as np
import pytest

from unialign_jax.data.tasks import Task
from unialign_jax.errors import UserError
from unialign_jax.parallel.mesh import MeshConfig, make_mesh
from unialign_jax.sampling.pipeline import Pipeline

PROMPTS = ["a cat", "a dog on a chair", "the moon"]


def arrays(images):
    return [np.asarray(image) for image in images]


def assert_equal(left, right):
    """Pixels equal up to one level: another place in the batch may round differently."""
    for a, b in zip(arrays(left), arrays(right), strict=True):
        assert np.abs(a.astype(int) - b.astype(int)).max() <= 1


@pytest.fixture(scope="module")
def generated(pipe):
    return pipe.generate(PROMPTS, seed=3, batch=4)


def test_images_come_out_in_the_models_size_and_differ(generated):
    assert [image.size for image in generated] == [(16, 16)] * 3
    first, second, _ = arrays(generated)
    assert np.abs(first.astype(int) - second.astype(int)).mean() > 10


def test_the_same_call_gives_the_same_images(pipe, generated):
    for a, b in zip(
        arrays(generated), arrays(pipe.generate(PROMPTS, seed=3, batch=4)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_an_image_does_not_depend_on_its_neighbours(pipe, generated):
    others = pipe.generate([PROMPTS[0], "something else", "and more"], seed=3, batch=4)
    assert_equal(others[:1], generated[:1])
    alone = pipe.generate(PROMPTS[0], seed=3, batch=4)
    assert_equal(alone, generated[:1])


def test_an_item_with_its_own_seed_is_the_first_of_a_call_with_that_seed(pipe, generated):
    moved = pipe.generate(["the moon", "a cat"], seed=[9, 3], batch=4)
    assert_equal(moved[1:], generated[:1])
    assert np.abs(arrays(moved)[0].astype(int) - arrays(generated)[2].astype(int)).max() > 1


def test_more_items_than_a_batch_holds_are_cut_into_batches(pipe, generated):
    many = pipe.generate([*PROMPTS, *["x"] * 3], seed=3, batch=4)
    assert len(many) == 6
    assert_equal(many[:3], generated)


def test_seed_guidance_prompt_and_negative_all_matter(pipe, generated):
    base = arrays(generated)[0]
    for changed in (
        pipe.generate(PROMPTS, seed=4, batch=4),
        pipe.generate(PROMPTS, seed=3, batch=4, guidance=5.0),
        pipe.generate(PROMPTS, seed=3, batch=4, negative="two dogs"),
        pipe.generate(["two dogs", *PROMPTS[1:]], seed=3, batch=4),
    ):
        assert np.abs(arrays(changed)[0].astype(int) - base.astype(int)).max() > 1


def test_one_program_serves_every_scale_above_one(pipe, generated):
    before = pipe._programs._images._cache_size()
    pipe.generate(PROMPTS, seed=3, batch=4, guidance=1.5)
    pipe.generate(["another"], seed=8, batch=4, guidance=9.0)
    assert pipe._programs._images._cache_size() == before


def test_guidance_of_one_runs_one_plain_pass(pipe, generated):
    plain = pipe.generate(PROMPTS, seed=3, batch=4, guidance=1.0)
    same = pipe.generate(PROMPTS, seed=3, batch=4, guidance=1.0, negative="two dogs")
    assert_equal(plain, same)
    near = pipe.generate(PROMPTS, seed=3, batch=4, guidance=1.0 + 1e-6)
    assert_equal(plain, near)


def test_edits_depend_on_source_and_instruction(pipe, photos):
    images = pipe.edit(photos[:3], "make it blue", seed=1, batch=4)
    again = pipe.edit(photos[1], "make it blue", seed=[1], batch=4)
    assert len(images) == 3
    assert not np.array_equal(arrays(images)[1], arrays(again)[0]), "another draw of the seed"
    assert_equal(images[:1], pipe.edit(photos[:1], "make it blue", seed=[1], batch=4))
    other = pipe.edit(photos[3], "make it blue", seed=[1], batch=4)
    assert np.abs(arrays(other)[0].astype(int) - arrays(images)[0].astype(int)).max() > 1


@pytest.mark.filterwarnings("ignore:1 of 1 texts")
def test_perception_is_an_edit_with_a_known_sentence(pipe, photos):
    from unialign_jax.sampling.requests import PERCEPTION

    maps = pipe.perceive(photos[0], "depth", seed=2, batch=4)
    assert_equal(maps, pipe.edit(photos[0], PERCEPTION["depth"], seed=2, batch=4))


def test_compose_takes_different_numbers_of_references_in_one_call(pipe, photos):
    images = pipe.compose([photos[:2], photos[:1], photos[1:3]], "together", seed=0, batch=4)
    assert len(images) == 3
    alone = pipe.compose(photos[:2], "together", seed=0, batch=4)
    assert_equal(alone, images[:1])
    single = pipe.compose([photos[:1]], "together", seed=0, batch=4)
    assert_equal(single, pipe.edit(photos[0], "together", seed=0, batch=4))


def test_a_caption_does_not_depend_on_its_neighbours(pipe, photos):
    texts = pipe.caption(photos, seed=1, batch=4)
    assert all(isinstance(text, str) for text in texts)
    assert len(set(texts)) == 4
    # Neighbours fill their tokens at other steps, which decides when a prediction is reused.
    assert pipe.caption([photos[0], photos[3], photos[3]], seed=1, batch=4)[0] == texts[0]
    assert pipe.caption(photos[0], seed=[1], batch=4) == texts[:1]


def test_an_answer_is_what_follows_the_question(pipe, photos):
    texts = pipe.answer(photos[:2], ["who?", "is it a cat?"], seed=1, batch=4)
    assert len(texts) == 2
    assert not any(text.startswith("Q:") for text in texts)
    assert pipe.answer(photos[0], "who?", seed=1, batch=4) == texts[:1]


def test_an_empty_list_gives_an_empty_list(pipe):
    assert pipe.generate([]) == []
    assert pipe.caption([]) == []


def test_other_sizes_can_be_generated(pipe):
    (image,) = pipe.generate("a cat", height=8, width=24, steps=1, guidance=1.0)
    assert image.size == (24, 8)


def test_long_prompts_are_counted_in_a_warning(pipe):
    with pytest.warns(UserWarning, match="1 of 2 texts are longer than 24 tokens"):
        pipe.generate(["cat " * 50, "cat"], batch=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe.generate("cat", batch=4)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"guidance": -1.0}, "guidance is -1"),
        ({"height": 18}, "height is 18: a multiple of 4"),
        ({"width": 64}, "width is 64: a multiple of 4 from 4 to 32"),
        ({"height": 0}, "height is 0"),
        ({"batch": 0}, "batch is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": [1, 2]}, "2 seeds for 1 items"),
    ],
)
def test_a_number_out_of_its_range_is_named(pipe, options, what):
    with pytest.raises(UserError, match=what):
        pipe.generate("a cat", **options)


def test_an_error_names_the_item(pipe, photos):
    with pytest.raises(UserError, match="item 1: .*not float64"):
        pipe.caption([photos[0], np.zeros((4, 4, 3))])


def test_the_average_is_taken_unless_raw_weights_are_asked_for(run, pipe):
    raw = Pipeline.from_pretrained(run, weights="raw")
    same = jax.tree.map(np.array_equal, raw.params, pipe.params)
    assert not any(jax.tree.leaves(same["transformer"])), "the average differs everywhere"
    assert all(jax.tree.leaves(same["text_encoder"])), "the frozen encoder has no average"


def test_the_compute_dtype_can_be_chosen(run):
    pipe = Pipeline.from_pretrained(run, dtype="bfloat16")
    assert pipe.model.config.dtype == "bfloat16"
    request = pipe.request(Task.GENERATE, "a cat")
    assert request.ids.dtype == np.int32


def test_a_batch_is_split_over_the_devices_of_a_mesh(run, pipe, generated):
    spread = Pipeline.from_pretrained(run, mesh=make_mesh(MeshConfig(), jax.devices()[:2]))
    leaf = jax.tree.leaves(spread.params)[0]
    assert len(leaf.sharding.device_set) == 2
    assert_equal(spread.generate(PROMPTS, seed=3, batch=3), generated)


@pytest.mark.parametrize("broken", ["missing", "empty", "tokenizer", "config"])
def test_what_is_no_run_directory_is_refused_with_what_it_takes(run, tmp_path, broken):
    import shutil

    path = tmp_path / "model"
    if broken != "missing":
        path.mkdir()
    if broken in ("tokenizer", "config"):
        shutil.copy(run / "config.json", path)
    if broken == "config":
        shutil.copy(run / "tokenizer.json", path)
        text = (path / "config.json").read_text().replace('"width": 32', '"widht": 32')
        (path / "config.json").write_text(text)
    wanted = {
        "missing": "not there.*run directory",
        "empty": "no config.json.*run directory",
        "tokenizer": "no tokenizer",
        "config": "config.json: unknown config key `model.widht`.*`model.width`",
    }
    with pytest.raises(UserError, match=f"(?s){wanted[broken]}"):
        Pipeline.from_pretrained(path)


def test_a_checkpoint_of_another_config_is_refused_by_its_arrays(run, tmp_path):
    import shutil

    path = tmp_path / "model"
    shutil.copytree(run, path)
    text = (path / "config.json").read_text().replace('"layers": 2', '"layers": 3')
    (path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"(?s)does not fit the config:\n  transformer/blocks"):
        Pipeline.from_pretrained(path)


def test_a_model_of_latents_without_its_autoencoder_is_refused(run, tmp_path):
    import shutil

    path = tmp_path / "model"
    shutil.copytree(run, path)
    text = (path / "config.json").read_text().replace('"channels": 3', '"channels": 16')
    (path / "config.json").write_text(text)
    with pytest.raises(UserError, match="model.channels is 16, but the latents have 3"):
        Pipeline.from_pretrained(path)
