"""What does not fit is refused with file and key, and leaves nothing behind."""

from __future__ import annotations

import errno
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.convert.conftest import ENCODER, TRANSFORMER, VAE, change, converted, write
from unialign_jax.bundle.read import Bundle
from unialign_jax.convert.recognise import recognise
from unialign_jax.convert.to_torch import Options, to_torch
from unialign_jax.errors import UserError
from unialign_jax.sampling.exporting import open_source

NAME = "transformer_blocks.1.attn.to_q.weight"


def without(name):
    return lambda state: {key: array for key, array in state.items() if key != name}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (without(NAME), f"missing {NAME}"),
        (lambda s: {**s, "extra.weight": s[NAME]}, "unexpected extra.weight"),
        (lambda s: {**s, NAME: s[NAME][:-1]}, rf"{NAME} is \(31, 32\), expected \(32, 32\)"),
        (lambda s: {**s, NAME: s[NAME].astype(np.float64)}, f"{NAME} is float64, expected float32"),
        (lambda s: {**s, NAME: s[NAME].astype(np.int32)}, f"{NAME} is int32, expected float32"),
    ],
)
def test_wrong_tensors_are_named_with_their_file(published, edit, message):
    change(published / TRANSFORMER, edit)
    with pytest.raises(UserError, match=f"(?s)diffusion_pytorch_model.safetensors: .*{message}"):
        recognise(published)


@pytest.mark.parametrize("file", [ENCODER, VAE])
def test_every_component_is_checked(published, file):
    name = sorted(load_file(published / file))[3]
    change(published / file, without(name))
    with pytest.raises(UserError, match=f"(?s){file}: .*missing {name}"):
        recognise(published)


def test_a_component_in_the_wrong_folder_is_told(published):
    shutil.rmtree(published / "text_encoder")
    shutil.copytree(published / "vae", published / "text_encoder")
    with pytest.raises(UserError, match="describes a vae; in this folder a text_encoder"):
        recognise(published)


def test_a_missing_component_says_what_the_index_lists(published):
    shutil.rmtree(published / "vae")
    with pytest.raises(UserError, match=r"has no folder vae/ \(model_index.json does not list"):
        recognise(published)


def test_a_missing_config_says_what_it_is_for(published):
    (published / "vae/config.json").unlink()
    with pytest.raises(UserError, match=r"vae/config.json: is not there, but tells the sizes"):
        recognise(published)


def test_a_config_of_another_network_names_its_key(published):
    file = published / "vae/config.json"
    write(file, {**json.loads(file.read_text()), "use_quant_conv": True})
    with pytest.raises(UserError, match=r"vae/config.json: .*use_quant_conv is True"):
        recognise(published)


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("transformer", "sample_size", None),
        ("transformer", "num_attention_heads", 0),
        ("transformer", "num_layers", 10**12),
        ("transformer", "joint_attention_dim", "24"),
        ("text_encoder", "d_model", 2.5),
        ("text_encoder", "num_layers", True),
        ("vae", "scaling_factor", "x"),
        ("vae", "block_out_channels", 3),
        ("vae", "latent_channels", 10**30),
    ],
)
def test_a_size_of_a_wrong_kind_names_file_and_key(published, file, key, value):
    path = published / file / "config.json"
    write(path, {**json.loads(path.read_text()), key: value})
    with pytest.raises(UserError, match=f"{file}/config.json: {key} is"):
        recognise(published)


def test_pytorch_weights_are_no_source_for_pytorch(published):
    with pytest.raises(UserError, match="holds PyTorch weights already"):
        open_source(published)


@pytest.mark.parametrize("shift", ["null", "0", "-1", '"3"', "true", "1e999"])
def test_a_shift_that_is_none_names_its_file(published, shift):
    (published / "scheduler/scheduler_config.json").write_text(f'{{"shift": {shift}}}')
    with pytest.raises(UserError, match=r"scheduler_config.json: shift is .*: a number above 0"):
        recognise(published)


def test_a_damaged_tokenizer_is_not_taken_over(published, tmp_path):
    (published / "tokenizer/tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="tokenizer/tokenizer.json is not a tokenizer.json"):
        converted(published, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_folder_of_components_without_an_index_says_which_to_name(published):
    (published / "model_index.json").unlink()
    with pytest.raises(UserError, match="it holds text_encoder, transformer, vae. Name one"):
        recognise(published)


def test_a_folder_of_pickles_says_why_it_is_not_read(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match=r"pytorch_model.bin .* could run code"):
        recognise(tmp_path)


def test_nothing_there_and_nothing_known(tmp_path):
    with pytest.raises(UserError, match="is not there"):
        recognise(tmp_path / "none")
    with pytest.raises(UserError, match="holds no weights"):
        recognise(tmp_path)
    save_file({"a": np.zeros((2, 2), np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="no component that is known: 1 tensors such as a"):
        recognise(tmp_path)


def test_stabilitys_own_layout_says_which_to_take(tmp_path):
    name = "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"
    save_file({name: np.zeros((2, 2), np.float32)}, tmp_path / "sd3_medium.safetensors")
    with pytest.raises(UserError, match="stable-diffusion-3-medium-diffusers"):
        recognise(tmp_path / "sd3_medium.safetensors")


@pytest.mark.parametrize("extra", ["attn.norm_q.weight", "attn2.to_q.weight"])
def test_stable_diffusion_3_5_is_refused_with_the_reason(published, extra):
    name = f"transformer_blocks.0.{extra}"
    change(published / TRANSFORMER, lambda s: {**s, name: np.zeros(16, np.float32)})
    with pytest.raises(UserError, match=rf"Stable Diffusion 3.5, with .*{extra}"):
        recognise(published)


def test_a_config_that_asks_for_stable_diffusion_3_5_is_refused(published):
    file = published / "transformer/config.json"
    write(file, {**json.loads(file.read_text()), "qk_norm": "rms_norm"})
    with pytest.raises(UserError, match="qk_norm"):
        recognise(published)


# ---------------------------------------------------------------------- destinations


def test_a_destination_is_taken_only_when_asked(original, tmp_path):
    converted(original / "vae", tmp_path / "bundle")
    with pytest.raises(UserError, match="exists.*--overwrite"):
        converted(original / "vae", tmp_path / "bundle")
    converted(original / "vae", tmp_path / "bundle", overwrite=True)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("words")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="exists and is no bundle"):
            converted(original / "vae", tmp_path / "thesis", overwrite=overwrite)
        options, source = Options(overwrite=overwrite), open_source(_whole(original, tmp_path))
        with pytest.raises(UserError, match="exists and is no export of unialign"):
            to_torch(source, tmp_path / "thesis", options)
    assert (tmp_path / "thesis/chapter.txt").read_text() == "words"


def _whole(original, tmp_path):
    if not (tmp_path / "whole").exists():
        converted(original, tmp_path / "whole")
    return tmp_path / "whole"


@pytest.mark.parametrize("way", ["to_jax", "to_torch"])
def test_a_full_disk_half_way_leaves_nothing(original, tmp_path, monkeypatch, way):
    source = open_source(_whole(original, tmp_path))
    before = sorted(path.name for path in tmp_path.iterdir())
    calls = []

    def full(*args, **options):
        calls.append(args)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **options)

    if way == "to_jax":
        from unialign_jax.bundle import write as module

        real = module.write_component
        monkeypatch.setattr(module, "write_component", full)
        with pytest.raises(UserError, match=r"new: .*no space left on the device"):
            converted(original, tmp_path / "new")
    else:
        from unialign_jax.convert import to_torch as module

        real = module.write_weights
        monkeypatch.setattr(module, "write_weights", full)
        with pytest.raises(UserError, match=r"new: .*no space left on the device"):
            to_torch(source, tmp_path / "new", Options())
    assert len(calls) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_damaged_bundle_is_not_written_for_pytorch(original, tmp_path):
    whole = _whole(original, tmp_path)
    file = max((whole / "vae").rglob("*"), key=lambda f: f.stat().st_size if f.is_file() else 0)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match=file.name):
        open_source(whole)


def test_mutated_headers_and_indexes_are_never_taken_for_a_model(published, tmp_path):
    """As `test_weight_files` does for the files alone, here through the whole of `recognise`."""
    rng = np.random.default_rng(0)
    files = [published / TRANSFORMER, published / "transformer/config.json"]
    whole = {file: file.read_bytes() for file in files}
    before = recognise(published / "transformer").parts["transformer"]
    refused = 0
    for _ in range(150):
        file = files[rng.integers(len(files))]
        data = bytearray(whole[file])
        reach = min(len(data), 6000)
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(reach)] = rng.integers(256)
        file.write_bytes(data)
        try:
            part = recognise(published / "transformer").parts["transformer"]
            # A change that means nothing, such as one of a key that is not read.
            assert part.config == before.config
            assert set(part.tensors) == set(before.tensors)
        except UserError as error:
            refused += 1
            assert str(published) in str(error)
        finally:
            file.write_bytes(whole[file])
    assert refused > 75


def test_an_opened_bundle_lists_what_it_holds(original, tmp_path):
    bundle = Bundle(_whole(original, tmp_path))
    assert "vae" in bundle and "qwen_vision" not in bundle
