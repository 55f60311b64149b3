"""A bundle is the model it was made from, and any other byte in it is an error that says where."""

from __future__ import annotations

import json
import os
import pickletools
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.bundle.conftest import STEP
from unialign_jax.bundle import contents
from unialign_jax.bundle.contents import named_arrays, read_description, render
from unialign_jax.bundle.write import write_bundle
from unialign_jax.errors import UserError
from unialign_jax.parallel.mesh import MeshConfig, make_mesh
from unialign_jax.sampling.bundling import bundle_run
from unialign_jax.sampling.loading import load_model
from unialign_jax.sampling.pipeline import Pipeline


def files_of(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file())


def assert_equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def rewrite(path: Path, **changes) -> None:
    """Seals a changed description, as another program or version might write it."""
    description = {**read_description(path), **changes}
    (path / "unialign.json").write_text(render(description))


def test_a_bundle_samples_bit_for_bit_as_the_run_does(pipe, bundle, monkeypatch):
    found = Pipeline.from_pretrained(bundle)
    assert_equal(found.params, pipe.params)
    assert found.model.sample == pipe.model.sample
    assert found.model.config == pipe.model.config
    monkeypatch.setattr(found, "_programs", pipe._programs)
    for a, b in zip(found.generate(["a cat"]), pipe.generate(["a cat"]), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_the_description_says_what_is_in_it_and_where_it_comes_from(pipe, bundle):
    description = json.loads((bundle / "unialign.json").read_text())
    assert description["format"] == 3
    assert description["name"] == "tiny"
    assert set(description["config"]) == {"model", "text_encoder", "data", "sample"}
    assert description["config"]["data"] == {"image_size": 16, "text_length": 24}
    assert description["switches"] == {"text_positions": 24}
    made_from = description["made_from"]
    assert (made_from["step"], made_from["weights"], made_from["seed"]) == (STEP, "ema", 0)
    for name, part in description["components"].items():
        sizes = [leaf.size for leaf in jax.tree.leaves(pipe.params[name])]
        assert part["parameters"] == sum(sizes)
        assert part["dtype"] == "float32"
    listed = {bundle / name for name in description["files"]}
    assert {*listed, bundle / "unialign.json"} == set(files_of(bundle))


def test_a_bundle_names_no_folder_and_holds_no_pickle(bundle, run):
    for file in files_of(bundle):
        data = file.read_bytes()
        assert str(bundle.parent).encode() not in data
        assert str(run.parent).encode() not in data
        with pytest.raises(ValueError):
            list(pickletools.genops(data or b"?"))


def test_reading_changes_no_file(copy):
    before = {file: file.read_bytes() for file in files_of(copy)}
    load_model(copy)
    assert {file: file.read_bytes() for file in files_of(copy)} == before


def test_parameters_go_whole_to_every_device_of_a_mesh(bundle, pipe):
    mesh = make_mesh(MeshConfig(), jax.devices()[:2])
    _, params, _ = load_model(bundle, mesh=mesh)
    for leaf in jax.tree.leaves(params):
        assert leaf.sharding.is_fully_replicated
        assert leaf.sharding.device_set == set(jax.devices()[:2])
    assert_equal(params, pipe.params)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_half_as_large_and_float32_again_when_read(
    run, pipe, bundle, tmp_path, dtype
):
    bundle_run(run, tmp_path / "half", dtype=dtype)
    _, params, _ = load_model(tmp_path / "half")
    for (_, leaf), (_, full) in zip(named_arrays(params), named_arrays(pipe.params), strict=True):
        assert leaf.dtype == np.float32
        np.testing.assert_array_equal(leaf, full.astype(dtype).astype(np.float32))
    size = [sum(f.stat().st_size for f in files_of(p)) for p in (tmp_path / "half", bundle)]
    assert size[0] < 0.75 * size[1]


def test_raw_weights_and_steps_are_those_of_the_run(run, bundle, tmp_path):
    bundle_run(run, tmp_path / "raw", "raw", step=STEP)
    _, params, step = load_model(tmp_path / "raw", step=STEP)
    assert step == STEP
    assert_equal(params, load_model(run, "raw")[1])
    with pytest.raises(UserError, match="has weights ema, not raw"):
        load_model(bundle, "raw")
    with pytest.raises(UserError, match=f"has step {STEP}, not 3"):
        load_model(bundle, step=3)
    with pytest.raises(UserError, match="no checkpoint of step 3"):
        bundle_run(run, tmp_path / "other", step=3)


# ---------------------------------------------------------------------- damage


def test_a_changed_byte_in_any_file_is_noticed_and_named(copy):
    for file in files_of(copy):
        name = file.relative_to(copy).as_posix()
        whole = file.read_bytes()
        for position in {0, len(whole) // 2, len(whole) - 1}:
            damaged = bytearray(whole or b"\0")
            damaged[max(position, 0)] ^= 1
            file.write_bytes(damaged)
            with pytest.raises(UserError, match=name):
                load_model(copy)
        file.write_bytes(whole)
    load_model(copy)


@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_a_file_that_is_cut_or_missing_is_noticed_and_named(copy, damage):
    for file in files_of(copy):
        name = file.relative_to(copy).as_posix()
        whole = file.read_bytes()
        if damage == "cut" and whole:
            file.write_bytes(whole[: len(whole) // 2])
        elif damage == "missing":
            file.unlink()
        else:
            continue
        # Without its description a folder is no bundle at all.
        with pytest.raises(UserError, match=f"{name}|not a run directory"):
            load_model(copy)
        file.write_bytes(whole)


def test_arrays_that_are_not_those_described_name_their_component(copy):
    components = read_description(copy)["components"]
    components["text_encoder"]["fingerprint"] ^= 1
    rewrite(copy, components=components)
    with pytest.raises(UserError, match="component `text_encoder`.*not those that were written"):
        load_model(copy)


def test_files_that_orbax_cannot_read_name_their_component(copy):
    for file in (copy / "transformer").rglob("_METADATA"):
        file.write_text("{}")
    rewrite(copy, files=contents.file_hashes(copy))
    with pytest.raises(UserError, match="component `transformer`"):
        load_model(copy)


def test_a_bundle_of_another_format_says_which_is_read(copy):
    rewrite(copy, format=1)
    with pytest.raises(UserError, match=r"unialign.json: is of format 1; .* reads format 3"):
        load_model(copy)


def test_a_config_of_other_sizes_is_refused_by_the_arrays(copy):
    config = read_description(copy)["config"]
    config["model"]["layers"] = 3
    rewrite(copy, config=config)
    with pytest.raises(UserError, match=r"(?s)does not fit the config:\n  transformer/blocks"):
        load_model(copy)


# ---------------------------------------------------------------------- writing


def test_an_existing_bundle_is_replaced_only_when_asked(run, copy):
    with pytest.raises(UserError, match="exists.*--overwrite"):
        bundle_run(run, copy)
    bundle_run(run, copy, dtype="float16", overwrite=True)
    assert read_description(copy)["components"]["transformer"]["dtype"] == "float16"
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


def test_a_folder_of_something_else_is_never_replaced(run, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("words")
    with pytest.raises(UserError, match="exists and is no bundle"):
        bundle_run(run, tmp_path / "thesis", overwrite=True)
    assert (tmp_path / "thesis/chapter.txt").read_text() == "words"


@pytest.mark.parametrize("stage", ["write_component", "shutil.copyfile", "file_hashes", "render"])
def test_interrupted_writing_leaves_nothing_new(run, copy, monkeypatch, stage):
    def stop(*args):
        raise KeyboardInterrupt

    before = {file: file.read_bytes() for file in files_of(copy.parent)}
    monkeypatch.setattr(f"unialign_jax.bundle.write.{stage}", stop)
    for destination in (copy.parent / "other", copy):
        with pytest.raises(KeyboardInterrupt):
            bundle_run(run, destination, overwrite=True)
    assert {file: file.read_bytes() for file in files_of(copy.parent)} == before


def test_what_a_killed_process_leaves_does_not_load(run, tmp_path, monkeypatch):
    monkeypatch.setattr("unialign_jax.bundle.write.render", lambda description: 1 / 0)
    monkeypatch.setattr("shutil.rmtree", lambda *args, **options: None)
    with pytest.raises(ZeroDivisionError):
        bundle_run(run, tmp_path / "new")
    (left,) = tmp_path.iterdir()
    assert left.name == f".new.partial-{os.getpid()}"
    with pytest.raises(UserError, match="not a run directory"):
        load_model(left)


def test_a_parameter_that_overflows_the_dtype_is_named(tmp_path):
    params = {"transformer": {"a": {"scale": jax.numpy.full(1, 1e5)}}, "text_encoder": {}}
    with pytest.raises(UserError, match=r"(?s)no finite value in float16:\n  transformer/a/scale"):
        write_bundle(
            tmp_path / "x",
            config={},
            params=params,
            tokenizer="none",
            switches={},
            made_from={},
            dtype="float16",
        )
    assert not list(tmp_path.iterdir())


def test_a_bundle_is_made_from_a_run(bundle, tmp_path):
    with pytest.raises(UserError, match="made from a run directory"):
        bundle_run(bundle, tmp_path / "again")
    with pytest.raises(UserError, match="not there"):
        bundle_run(tmp_path / "nowhere", tmp_path / "new")
