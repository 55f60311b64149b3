"""Calls that once lost files, mixed up weights or ended in a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.convert.conftest import TRANSFORMER, change, converted, write
from unialign_jax import cli
from unialign_jax.bundle.folder import new_folder
from unialign_jax.bundle.read import Bundle
from unialign_jax.convert.recognise import recognise
from unialign_jax.convert.to_jax import open_components
from unialign_jax.errors import UserError
from unialign_jax.sampling.pipeline import Pipeline


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str]:
        code = cli.main(["convert", *map(str, words)])
        return code, capsys.readouterr().err

    return call


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_with_a_readme_is_not_taken_for_an_export(call, original, tmp_path):
    converted(original, tmp_path / "bundle")
    (tmp_path / "precious/.git").mkdir(parents=True)
    (tmp_path / "precious/README.md").write_text("mine")
    code, error = call("to-torch", "bundle", "precious", "--overwrite")
    assert code == 1 and "exists and is no export of unialign" in error
    assert names(tmp_path / "precious") == [".git", "README.md"]


def test_what_is_read_is_never_written_over(call, original, published, tmp_path):
    converted(original, tmp_path / "bundle")
    for words in (
        ("to-jax", published, published / "inside"),
        ("to-jax", published / "vae", published, "--overwrite"),
        ("to-jax", published / "vae", "bundle", "--components", "bundle", "--overwrite"),
        ("to-torch", "bundle", "bundle", "--overwrite"),
    ):
        code, error = call(*words)
        assert code == 2 and "is read. Name another destination" in error
    Bundle(tmp_path / "bundle").shapes("vae")
    assert recognise(published).kind == "unialignment directory"


def test_a_bundle_does_not_refer_to_what_it_replaces(original, tmp_path):
    converted(original, tmp_path / "base")
    components = open_components(tmp_path / "base")
    with pytest.raises(UserError, match="would come from the bundle that it replaces"):
        converted(
            original / "transformer",
            tmp_path / "base",
            components=components,
            refer=True,
            overwrite=True,
        )
    Bundle(tmp_path / "base").shapes("text_encoder")


def test_references_in_a_circle_are_an_error(original, tmp_path):
    from unialign_jax.bundle.contents import read_description, render

    converted(original, tmp_path / "a")
    base = open_components(tmp_path / "a")
    converted(original / "transformer", tmp_path / "b", components=base, refer=True)
    entry = read_description(tmp_path / "b")["components"]["vae"]
    description = read_description(tmp_path / "a")
    components = {**description["components"], "vae": {**entry, "bundle": "../b"}}
    text = render({**description, "components": components})
    (tmp_path / "a/unialign.json").write_text(text)
    with pytest.raises(UserError, match="refers back to itself"):
        Bundle(tmp_path / "a").shapes("vae")


def test_a_folder_that_appears_meanwhile_is_left_alone(tmp_path):
    final = tmp_path / "new"

    def make():
        with new_folder(final, False, "marker", "thing") as folder:
            (folder / "marker").touch()
            final.mkdir()
            (final / "precious").touch()

    with pytest.raises(UserError, match="exists and is no thing"):
        make()
    assert names(final) == ["precious"] and names(tmp_path) == ["new"]


@pytest.mark.parametrize("kind", ["a file above", "dots", "a dangling link"])
def test_impossible_destinations_are_told_before_anything_is_read(call, original, tmp_path, kind):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    place = {"a file above": "file/x", "dots": "y/..", "a dangling link": "link"}[kind]
    code, error = call("to-jax", original, place)
    assert code == 1 and "is no place for a folder" in error


def test_a_link_to_a_folder_is_the_folder(call, original, tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to("target")
    assert call("to-jax", original / "vae", "link")[0] == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target/unialign.json").is_file()
    assert call("to-jax", original / "vae", "link", "--overwrite")[0] == 0
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / "short").symlink_to("deep/er")
    converted(original, tmp_path / "base")
    words = ("--components", "base", "--refer")
    assert call("to-jax", original / "transformer", "short/r", *words)[0] == 0
    Bundle(tmp_path / "short/r").shapes("vae")


def test_both_names_of_one_tensor_are_refused(published):
    name = "norm_out.linear.weight"
    change(published / TRANSFORMER, lambda s: {**s, name: s["image_norm_out.linear.weight"] + 1})
    with pytest.raises(UserError, match=f"unexpected {name}"):
        recognise(published)


def test_numbers_that_json_has_not_are_refused(published):
    file = published / "vae/config.json"
    text = file.read_text().replace("0.0609", "NaN")
    assert text != file.read_text()
    file.write_text(text)
    with pytest.raises(UserError, match=r"vae/config.json: .*NaN is no number"):
        recognise(published)


@pytest.mark.parametrize(
    "edit",
    [
        lambda s: {n: a for n, a in s.items() if n != "context_embedder.weight"},
        lambda s: {**s, "text_proj_out.weight": np.zeros((), np.float32)},
        lambda s: {**s, "pos_embed.pos_embed": np.zeros((1, 0, 32), np.float32)},
        lambda s: {**s, "pos_embed.proj.weight": np.zeros((0, 4, 2, 2), np.float32)},
    ],
)
@pytest.mark.parametrize("config", [True, False])
@pytest.mark.parametrize("adapters", [True, False])
def test_missing_empty_and_scalar_tensors_are_refused(published, edit, config, adapters):
    def both(state):
        kept = {n: a for n, a in state.items() if adapters or "siglip" not in n}
        return edit(kept)

    change(published / TRANSFORMER, both)
    if not config:
        (published / "transformer/config.json").unlink()
    with pytest.raises(UserError, match="transformer"):
        recognise(published / "transformer", heads=None if config else 2)


def test_a_table_of_positions_that_fits_no_memory_is_not_made(published):
    file = published / "transformer/config.json"
    write(file, {**json.loads(file.read_text()), "pos_embed_max_size": 100_000})
    with pytest.raises(UserError, match=r"the config needs \(1, 10000000000, 32\)"):
        recognise(published)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--heads", "0"), 2, "--heads is 0: at least 1"),
        (("--refer",), 2, "--refer names the bundle of --components"),
        (("--mask-token", "nosuch.pth"), 1, "nosuch.pth: is not there, or no file"),
    ],
)
def test_options_that_cannot_be(call, published, words, code, message):
    (published / "transformer/config.json").unlink()
    source = published / "transformer" if "--heads" in words else published / "text_encoder"
    found, error = call("to-jax", source, "x", *words)
    assert found == code and message in error


def test_a_size_without_end_is_a_wrong_call(call):
    code, error = call("to-torch", "a", "b", "--max-shard-size", "inf")
    assert code == 2 and "no size such as 5GB" in error


def test_a_vector_is_recognised_in_its_folder(tmp_path):
    from safetensors.numpy import save_file

    (tmp_path / "mask").mkdir()
    save_file({"m": np.zeros(24, np.float32)}, tmp_path / "mask/m.safetensors")
    assert recognise(tmp_path / "mask").kind == "mask token"


def test_a_partial_export_is_read_back_part_by_part(call, original, tmp_path):
    converted(original / "transformer", tmp_path / "part")
    assert call("to-torch", "part", "out")[0] == 0
    assert not (tmp_path / "out/model_index.json").exists()
    assert "from_pretrained" not in (tmp_path / "out/README.md").read_text()
    assert recognise(tmp_path / "out/transformer").kind == "unialignment"
    with pytest.raises(UserError, match="no model_index.json"):
        recognise(tmp_path / "out")
    with pytest.raises(UserError, match="not a run directory"):
        Pipeline.from_pretrained(tmp_path / "out")


def test_an_export_of_raw_weights_is_checked_against_raw_weights(original, tmp_path):
    """`--check` takes the arrays that were written, whatever they are."""
    pytest.importorskip("torch")
    from unialign_jax.convert.check import compare
    from unialign_jax.sampling.exporting import open_source

    converted(original / "transformer", tmp_path / "part")
    source = open_source(tmp_path / "part")
    found = compare(source.leaves, original / "transformer")
    assert set(found) == {"transformer velocity", "transformer logits"}
    assert all(difference < 5e-6 for difference in found.values())
