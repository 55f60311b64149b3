"""Models whose latents are an autoencoder's: loaded from PyTorch or a bundle, onto any mesh."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.convert.conftest import converted, original
from tests.sampling.conftest import photograph
from unialign_jax.bundle.leaves import flatten
from unialign_jax.errors import UserError
from unialign_jax.parallel import rules
from unialign_jax.parallel.mesh import MeshConfig, make_mesh
from unialign_jax.sampling.loading import load_model
from unialign_jax.sampling.pipeline import Pipeline

__all__ = ["original"]

SIZE = 32


@pytest.fixture(scope="module")
def bundle(original, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    converted(original, path)
    return path


@pytest.fixture(scope="module")
def pipe(bundle):
    return Pipeline.from_pretrained(bundle)


def same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_a_pytorch_directory_is_the_model_that_its_bundle_is(original, pipe):
    found = Pipeline.from_pretrained(original)
    same(found.params, pipe.params)
    assert found.model.config == pipe.model.config
    assert found.model.sample == pipe.model.sample
    assert found.model.latents.config == pipe.model.latents.config


def test_sizes_are_multiples_of_patch_and_factor(pipe):
    assert (pipe.model.patch_pixels, pipe.model.largest_side) == (16, 128)
    (image,) = pipe.generate(["a cat"], steps=2, height=SIZE, width=2 * SIZE)
    assert image.size == (2 * SIZE, SIZE)
    with pytest.raises(UserError, match="height is 24: a multiple of 16 from 16 to 128"):
        pipe.generate(["a cat"], steps=2, height=24)


def test_an_image_is_the_decoded_end_of_the_flow(pipe):
    """The pipeline by its parts: start noise, one Euler step, the decoder."""
    import jax.numpy as jnp

    from unialign_jax.models.mmdit import Branch, Heads
    from unialign_jax.sampling.programs import START_NOISE, _normal

    model, params = pipe.model, pipe.params
    (image,) = pipe.generate(["a cat"], steps=1, guidance=1.0, height=SIZE, width=SIZE, seed=3)
    start = _normal(np.array([[3, 0]], np.uint32), START_NOISE, (4, 4, 16))
    ids = model.tokenizer.encode("a cat", model.text_length)[0][None]
    text = model.text_encoder.bind(params["text_encoder"])(ids)
    branch = Branch(text, jnp.full((1,), 1000.0), start)
    velocity = model.transformer.bind(params["transformer"])(branch, Heads(velocity=True)).velocity
    decoded = model.latents.autoencoder.bind(params["vae"]).decode(start - velocity)
    wanted = np.round(np.clip((np.asarray(decoded[0]) + 1) * 127.5, 0, 255))
    assert np.abs(np.asarray(image).astype(float) - wanted).max() <= 1


def test_every_task_runs_on_latents(pipe):
    photos = [photograph(seed, 40, 48) for seed in range(3)]
    options = {"steps": 2, "seed": 1}
    size = (pipe.model.image_size,) * 2
    assert pipe.edit(photos[0], "make it blue", **options)[0].size == size
    assert pipe.perceive(photos[:1], "depth", **options)[0].size == size
    assert pipe.compose([photos], "all on a table", **options)[0].size == size
    assert len(pipe.caption(photos, **options)) == 3
    assert len(pipe.answer(photos[0], "what colour?", **options)) == 1


def test_an_item_does_not_depend_on_its_neighbours(pipe):
    photos = [photograph(seed, 40, 40) for seed in range(3)]
    together = pipe.edit(photos, ["make it blue"] * 3, steps=2, seed=[5, 6, 7])
    alone = pipe.edit(photos[1], "make it blue", steps=2, seed=[6])
    difference = np.abs(np.asarray(together[1], int) - np.asarray(alone[0], int))
    assert difference.max() <= 1


MESHES = [MeshConfig(data=1, fsdp=8), MeshConfig(data=2, fsdp=2, tensor=2), MeshConfig(data=8)]


@pytest.mark.parametrize("several", [False, True], ids=["alone", "as one of several processes"])
@pytest.mark.parametrize("config", MESHES, ids=str)
def test_weights_restore_straight_into_any_mesh(bundle, pipe, config, several, monkeypatch):
    mesh = make_mesh(config)
    if several:
        monkeypatch.setattr("unialign_jax.bundle.read._alone", lambda: False)
    model, params, _ = load_model(bundle, mesh=mesh)
    same(params, pipe.params)
    split = 0
    for name, network in model.networks.items():
        places = dict(flatten(rules.shardings(network.axes, network.abstract, mesh)))
        for keys, leaf in flatten(params[name]):
            assert leaf.sharding.is_equivalent_to(places[keys], leaf.ndim), keys
            split += not leaf.sharding.is_fully_replicated
    assert bool(split) == (config.fsdp > 1)


def test_a_pytorch_directory_restores_into_a_mesh_too(original, pipe):
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    _, params, _ = load_model(original, mesh=mesh)
    same(params, pipe.params)
    kernel = params["transformer"]["blocks"]["layers"]["image"]["up"]["kernel"]
    assert not kernel.sharding.is_fully_replicated


def test_a_sharded_model_samples_what_one_device_samples(bundle, pipe):
    sharded = Pipeline.from_pretrained(bundle, mesh=make_mesh(MeshConfig(data=2, fsdp=4)))
    options = {"steps": 2, "height": SIZE, "width": SIZE, "seed": 2}
    for a, b in zip(
        sharded.generate(["a cat"] * 8, **options),
        pipe.generate(["a cat"] * 8, **options),
        strict=True,
    ):
        assert np.abs(np.asarray(a, int) - np.asarray(b, int)).max() <= 1


def test_parameters_are_held_in_the_dtype_asked_for(bundle):
    for asked, held in (("bfloat16", "bfloat16"), (None, "float32")):
        found = Pipeline.from_pretrained(bundle, param_dtype=asked)
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(found.params)} == {held}
    (image,) = found.generate(["a cat"], steps=1, height=SIZE, width=SIZE)
    assert image.size == (SIZE, SIZE)


def test_a_part_of_a_model_says_what_it_lacks(original, tmp_path):
    converted(original / "transformer", tmp_path / "part")
    with pytest.raises(UserError, match=r"has no text_encoder, tokenizer.json: it is a part"):
        Pipeline.from_pretrained(tmp_path / "part")


# ---------------------------------------------------------------------- the Hub


@pytest.fixture
def cache(original, tmp_path, monkeypatch):
    """A cache of the Hub with one model at one commit, as the Hub's library lays it out."""
    import shutil

    from huggingface_hub import constants

    folder = tmp_path / "hub" / "models--someone--unialignment"
    commit = "a" * 40
    shutil.copytree(original, folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return commit


def test_a_model_of_the_hub_comes_from_its_cache_when_offline(cache, pipe):
    for revision in (None, "main", cache):
        _, params, _ = load_model("someone/unialignment", revision=revision)
        same(params["vae"], pipe.params["vae"])
    _, params, _ = load_model(f"someone/unialignment@{cache}")
    same(params["vae"], pipe.params["vae"])
    with pytest.raises(UserError, match=f"cannot be had from the Hub at revision {'b' * 40}"):
        load_model("someone/unialignment", revision="b" * 40)
    with pytest.raises(UserError, match="someone/else: is no folder here, and cannot be had"):
        load_model("someone/else")


def test_a_folder_of_that_owner_here_is_no_model_of_the_hub(cache, tmp_path):
    (tmp_path / "someone").mkdir()
    with pytest.raises(UserError, match="someone/unialignment is not there"):
        load_model("someone/unialignment")
