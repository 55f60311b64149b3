"""`unialign convert` from published weights to JAX and back, as a user calls it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.convert.conftest import FILES, TRANSFORMER, equal, original
from unialign_jax import cli
from unialign_jax.commands import convert
from unialign_jax.sampling.exporting import open_source

__all__ = ["original"]

KEYS = {
    *("recognised", "tensors", "bytes", "missing", "unexpected", "initialised"),
    *("peak_rss_bytes", "seconds"),
}


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def call(*words: object):
        code = cli.main([str(word) for word in words])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return call


def test_there_and_back_says_what_it_found_and_what_it_wrote(call, original, tmp_path):
    code, out, error = call("convert", "to-jax", original, "bundle")
    assert code == 0, error
    assert "a whole model (UniAlignment): transformer, text encoder, autoencoder, tokenizer" in out
    assert "transformer: " in out and "float32" in out
    assert "-> bundle" in out
    code, out, error = call("convert", "to-torch", "bundle", "back")
    assert code == 0, error
    assert "bundle: transformer, text_encoder, vae" in out and "parameters" in out
    for file in FILES:
        assert equal(load_file(original / file), load_file(tmp_path / "back" / file)) == []
    code, out, _ = call("sample", "--model", "back", "--prompt", "a cat", "--out", "made")
    assert code == 0


def test_json_has_the_fields_that_programs_read(call, original):
    code, out, _ = call("convert", "to-jax", original, "bundle", "--json")
    report = json.loads(out)
    assert code == 0 and set(report) == KEYS
    assert report["recognised"] == "unialignment directory"
    counts = [len(load_file(original / file)) for file in FILES]
    assert report["tensors"] == sum(counts) - 1  # without the table of positions
    assert report["missing"] == report["unexpected"] == report["initialised"] == []
    assert report["peak_rss_bytes"] > 10**7 and report["seconds"] > 0
    code, out, _ = call("convert", "to-torch", "bundle", "back", "--json")
    report = json.loads(out)
    assert code == 0 and set(report) == KEYS
    assert report["tensors"] == sum(counts)


def test_a_dry_run_writes_nothing(call, original, tmp_path):
    code, out, _ = call("convert", "to-jax", original, "bundle", "--dry-run")
    assert code == 0 and "whole model" in out
    assert list(tmp_path.iterdir()) == []


def test_check_compares_outputs_of_both(call, original):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    pytest.importorskip("diffusers")
    for words in (("to-jax", original, "bundle"), ("to-torch", "bundle", "back")):
        code, out, error = call("convert", *words, "--check", "--json")
        assert code == 0, error
        check = json.loads(out)["check"]
        assert set(check) == {
            *("transformer velocity", "transformer logits"),
            *("text_encoder", "vae mean", "vae image"),
        }
        assert all(0 < difference < 5e-6 for difference in check.values())


def test_check_sees_a_difference(call, original, tmp_path):
    pytest.importorskip("torch")
    assert call("convert", "to-jax", original / "transformer", "bundle")[0] == 0
    other = tmp_path / "other"
    shutil.copytree(original / "transformer", other)
    file = other / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    state["text_proj_out.bias"] = state["text_proj_out.bias"] + np.float32(0.1)
    save_file(state, file)
    found = convert._check(open_source(tmp_path / "bundle").leaves, other, quiet=True)
    assert found["transformer logits"] > 1e-3 > 1e-5 > found["transformer velocity"]


def test_options_of_the_written_folder(call, original, tmp_path):
    assert call("convert", "to-jax", original, "bundle")[0] == 0
    words = ("--dtype", "bfloat16", "--max-shard-size", "60KB", "--without-adapters", "--name", "x")
    code, _, error = call("convert", "to-torch", "bundle", "back", *words)
    assert code == 0, error
    assert len(list((tmp_path / "back/transformer").glob("*.safetensors"))) > 1
    assert (tmp_path / "back/README.md").read_text().startswith("---\nlibrary_name: diffusers")
    assert "# x" in (tmp_path / "back/README.md").read_text()
    code, _, error = call("convert", "to-torch", "bundle", "back")
    assert code == 1 and "--overwrite" in error


@pytest.mark.parametrize("text", ["5XB", "", "-1GB", "0"])
def test_a_size_that_is_none_is_a_wrong_call(call, original, text):
    code, _, error = call("convert", "to-torch", "bundle", "back", f"--max-shard-size={text}")
    assert code == 2 and "no size such as 5GB" in error


def test_sizes_are_for_starts_alone(call, original):
    code, _, error = call("convert", "to-jax", original, "bundle", "--vocab-size", "100")
    assert code == 2 and "only SD3" in error


def test_a_start_lists_every_tensor_that_is_not_as_it_was(call, original, tmp_path):
    folder = shutil.copytree(original / "transformer", tmp_path / "sd3")
    file = folder / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    new = ("text_proj_out", "siglip_adapter", "null_image_embd")
    state = {name: array for name, array in state.items() if not name.startswith(new)}
    for kind in ("weight", "bias"):
        state[f"norm_out.linear.{kind}"] = state.pop(f"image_norm_out.linear.{kind}")
        state[f"proj_out.{kind}"] = state.pop(f"image_proj_out.{kind}")
    save_file(state, file)
    sizes = ("--vocab-size", 128, "--adapter-hidden", 10, "--adapter-out", 12)
    code, out, error = call("convert", "to-jax", "sd3", "start", *sizes)
    assert code == 0, error
    assert "Stable Diffusion 3, as a start for training" in out
    assert "norm_out.linear.weight -> image_norm_out.linear.weight" in out
    assert "text_proj_out.weight" in out.split("initialised")[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("to-jax", "nowhere", "x"), "nowhere: is not there"),
        (("to-torch", "nowhere", "x"), "nowhere is not there"),
        (("to-torch", "scenes", "x"), "cannot be written for PyTorch: model.text_positions = 18"),
    ],
)
def test_bad_input_is_one_clear_line(call, words, message):
    code, _, error = call("convert", *words)
    assert code == 1 and message in error and "Traceback" not in error


def test_a_damaged_file_is_named(call, original, tmp_path):
    folder = shutil.copytree(original, tmp_path / "damaged")
    file = folder / TRANSFORMER
    file.write_bytes(file.read_bytes()[:-100])
    code, _, error = call("convert", "to-jax", "damaged", "bundle")
    assert code == 1 and str(TRANSFORMER) in error and "cut short" in error
    assert not (tmp_path / "bundle").exists()
