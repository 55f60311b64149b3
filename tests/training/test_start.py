"""`init_from`: a run that starts from the weights of a bundle, on pixels and on latents."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.convert.conftest import converted, original
from unialign_jax.data.prepare import PrepareOptions, prepare
from unialign_jax.data.sources.jsonl_source import JsonlSource
from unialign_jax.data.sources.photos import write_photos
from unialign_jax.data.tokenizer import TextTokenizer
from unialign_jax.errors import UserError
from unialign_jax.sampling.bundling import bundle_run
from unialign_jax.sampling.loading import load_model
from unialign_jax.sampling.pipeline import Pipeline
from unialign_jax.training import start
from unialign_jax.training.loop import train
from unialign_jax.training.setup import make_setup

__all__ = ["original"]

SIZE = 32


@pytest.fixture(scope="module")
def bundle(original, tmp_path_factory) -> Path:
    """A model of latents, converted from PyTorch."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    converted(original, path)
    return path


@pytest.fixture(scope="module")
def data(original, tmp_path_factory) -> Path:
    """Photographs, prepared with the tokenizer of that model."""
    pytest.importorskip("skimage")
    folder = tmp_path_factory.mktemp("photos")
    lines = write_photos(folder / "raw", size=SIZE, edits=1)
    options = PrepareOptions(tokenizer=original / "tokenizer/tokenizer.json")
    prepare(JsonlSource(lines), folder / "data", options)
    return folder / "data"


@pytest.fixture
def config(tiny, bundle, data) -> dict[str, Any]:
    """The tiny config with the sizes of the bundle."""
    from unialign_jax.bundle.contents import read_description

    theirs = read_description(bundle)["config"]
    encoder = {k: v for k, v in theirs["text_encoder"].items() if k != "param_dtype"}
    return {
        **tiny,
        "init_from": str(bundle),
        "model": theirs["model"],
        "text_encoder": {**encoder, "train": False},
        "data": {**tiny["data"], "path": str(data), "image_size": SIZE},
        "train": {**tiny["train"], "steps": 2},
    }


def same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_a_run_on_latents_starts_continues_and_samples(config, bundle, tmp_path):
    done = train(config, tmp_path / "run")
    assert done.step == 2 and np.isfinite(done.values["loss"])
    given = load_model(bundle)[1]
    model, params, _ = load_model(tmp_path / "run", "raw")
    # Frozen parts are what they were, the rest has moved, though not far.
    same(params["vae"], given["vae"])
    same(params["text_encoder"], given["text_encoder"])
    before, after = (p["transformer"]["text_head"]["kernel"] for p in (given, params))
    moved = float(np.abs(np.asarray(before) - np.asarray(after)).max())
    assert 0 < moved < 0.02
    (image,) = Pipeline(model, params).generate(["a cat"], steps=1, height=SIZE, width=SIZE)
    assert image.size == (SIZE, SIZE)
    # To go on, the bundle is not needed any more.
    longer = {**config, "train": {**config["train"], "steps": 3}}
    aside = bundle.with_name("aside")
    shutil.move(bundle, aside)
    try:
        assert train(longer, tmp_path / "run").step == 3
    finally:
        shutil.move(aside, bundle)
    described = bundle_run(tmp_path / "run", tmp_path / "bundle")
    assert set(described["components"]) == {"transformer", "text_encoder", "vae"}


def test_the_state_holds_the_given_weights_in_the_shardings_of_the_run(config, bundle):
    tokenizer = TextTokenizer.from_file(bundle / "tokenizer.json")
    config = {**config, "mesh": {"data": 1, "fsdp": 8, "context": 1, "tensor": 1}}
    setup = make_setup(start.completed(config, None, tokenizer), tokenizer)
    state = setup.init()
    same(state.params, load_model(bundle)[1])
    same(state.ema["transformer"], state.params["transformer"])
    for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(setup.abstract), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)


def test_latents_of_a_step_are_those_of_the_autoencoder(config, bundle):
    """Pixels given to a step, and their latents given to it, are the same step."""
    import jax.numpy as jnp

    from unialign_jax.objective import Batch
    from unialign_jax.training.step import _with_latents

    model, params, _ = load_model(bundle)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    ids = jnp.zeros((2, 8), jnp.int32)
    batch = Batch(target=jnp.asarray(pixels), instruction_ids=ids, caption_ids=ids)
    found = _with_latents(model.latents, params, batch, jax.random.key(0)).target
    bound = model.latents.autoencoder.bind(params["vae"])
    moments = bound.moments(pixels.astype(np.float32) / 127.5 - 1)
    deviation = np.exp(0.5 * np.asarray(moments.logvar))
    noise = (np.asarray(found) / 1.5305 + 0.0609 - np.asarray(moments.mean)) / deviation
    assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1
    other = _with_latents(model.latents, params, batch, jax.random.key(1)).target
    assert not np.array_equal(found, other)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("model", "layers", 5, r"--config.model.layers=2 \(is 5\)"),
        ("model", "text_positions", 8, r"--config.model.text_positions=0 \(is 8\)"),
        # Neither the bundle nor most configs say it.
        ("model", "stem_channels", 4, r"--config.model.stem_channels=0 \(is 4\)"),
        ("text_encoder", "width", 32, r"--config.text_encoder.width=24 \(is 32\)"),
    ],
)
def test_other_sizes_name_the_options_that_would_fit(config, section, key, value, message):
    wrong = {**config, section: {**config[section], key: value}}
    with pytest.raises(UserError, match=message):
        start.completed(wrong)


def test_what_is_no_bundle_says_what_makes_one(config, tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(UserError, match="init_from: .* is no bundle"):
            start.completed({**config, "init_from": str(path)})


def test_a_bundle_without_a_transformer_is_no_start(config, original, tmp_path, bundle):
    converted(original / "vae", tmp_path / "part")
    tokenizer = TextTokenizer.from_file(bundle / "tokenizer.json")
    wrong = {**config, "init_from": str(tmp_path / "part")}
    setup = make_setup(start.completed(wrong), tokenizer)
    with pytest.raises(UserError, match="holds no transformer to start from"):
        setup.init()


def test_data_of_another_tokenizer_are_refused(config, photos):
    wrong = {**config, "data": {**config["data"], "path": str(photos)}}
    tokenizer = TextTokenizer.from_file(photos / "tokenizer.json")
    with pytest.raises(UserError, match="made with another tokenizer .*`--tokenizer"):
        start.completed(wrong, None, tokenizer)


def test_a_model_of_pixels_starts_from_a_run(tiny, tmp_path):
    config = {**tiny, "train": {**tiny["train"], "steps": 2}}
    train(config, tmp_path / "first")
    bundle_run(tmp_path / "first", tmp_path / "bundle")
    train({**config, "init_from": str(tmp_path / "bundle")}, tmp_path / "second")
    ema = load_model(tmp_path / "first")[1]
    setup = make_setup(
        {**config, "init_from": str(tmp_path / "bundle")},
        TextTokenizer.from_file(tmp_path / "bundle/tokenizer.json"),
    )
    same(setup.init().params["transformer"], ema["transformer"])
