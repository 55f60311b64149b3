"""PyTorch weights become a bundle that holds every tensor bit for bit, whatever they are."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.convert.conftest import (
    ENCODER,
    FILES,
    GOLDENS,
    TRANSFORMER,
    VAE,
    change,
    converted,
    equal,
    write,
)
from unialign_jax.bundle.read import Bundle
from unialign_jax.convert.recognise import recognise
from unialign_jax.convert.to_jax import BUFFERS, MASK_TOKEN, open_components, to_jax
from unialign_jax.convert.to_torch import Options, prepare, to_torch
from unialign_jax.data.tokenizer import TextTokenizer
from unialign_jax.errors import UserError
from unialign_jax.sampling.exporting import open_source


def there_and_back(source: Path, tmp_path: Path) -> dict[str, dict[str, np.ndarray]]:
    converted(source, tmp_path / "bundle")
    to_torch(open_source(tmp_path / "bundle"), tmp_path / "back", Options())
    return {file: load_file(tmp_path / "back" / file) for file in FILES}


BUFFER = "pos_embed.pos_embed"


# ---------------------------------------------------------------------- bits


def test_there_and_back_gives_every_tensor_bit_for_bit(original, tmp_path):
    back = there_and_back(original, tmp_path)
    for file in FILES:
        assert equal(load_file(original / file), back[file]) == []


def test_dtypes_are_kept_also_where_they_are_mixed(published, tmp_path):
    kinds = (np.float32, ml_dtypes.bfloat16, np.float16)

    def mix(state):
        # Queries, keys and values of a stream are one array of ours, and of one dtype in any file.
        alike = {name: kinds[_block(name) % 3] for name in state}
        return {name: array.astype(alike[name]) for name, array in state.items()}

    before = {file: change(published / file, mix) for file in FILES}
    back = there_and_back(published, tmp_path)
    for file in FILES:
        assert equal(before[file], back[file]) == []


def _block(name: str) -> int:
    return sum(int(part) for part in name.split(".") if part.isdecimal() and "blocks" in name)


def test_a_change_of_one_leaf_changes_exactly_its_tensors(original, tmp_path):
    """For every array that a bundle holds, of every component."""
    converted(original, tmp_path / "bundle")
    source = open_source(tmp_path / "bundle")

    for part in source.leaves:
        arrays = {(leaf.path, leaf.layer): leaf.read() for leaf in source.leaves[part]([])}

        def held(order, part=part, arrays=arrays):
            for leaf in source.leaves[part](order):
                yield dataclasses.replace(leaf, read=lambda k=(leaf.path, leaf.layer): arrays[k])

        leaves = {**source.leaves, part: held}
        made = prepare(dataclasses.replace(source, leaves=leaves), Options())[1][part]
        names = [tensor.name for tensor in made.planned]
        before, seen = {name: made.read(name).tobytes() for name in names}, set()
        for key, array in list(arrays.items()):
            arrays[key] = array + np.asarray(1, array.dtype)
            changed = {name for name in names if made.read(name).tobytes() != before[name]}
            arrays[key] = array
            # Queries, keys and values are one array of ours.
            assert len(changed) == (3 if "/qkv/" in key[0] else 1), (key, changed)
            assert not seen & changed
            seen |= changed
        assert seen == set(names) - {BUFFER}


def test_queries_keys_and_values_of_different_dtypes_are_refused(published, tmp_path):
    name = "transformer_blocks.0.attn.to_k.weight"
    change(published / TRANSFORMER, lambda s: {**s, name: s[name].astype(np.float16)})
    with pytest.raises(UserError, match=r"attn.to_q.weight.* are of float16 and float32"):
        recognise(published)


# ---------------------------------------------------------------------- the positional buffer


def test_a_buffer_of_the_formula_is_not_stored(original, tmp_path):
    assert BUFFERS not in converted(original, tmp_path / "bundle")


def test_a_buffer_that_is_a_bit_off_the_formula_is_carried(published, tmp_path):
    def nudge(state):
        state[BUFFER].reshape(-1)[5] = np.nextafter(state[BUFFER].reshape(-1)[5], np.float32(2))

    before = change(published / TRANSFORMER, nudge)
    assert equal(before, there_and_back(published, tmp_path)[TRANSFORMER]) == []


def test_a_buffer_of_another_formula_is_refused(published):
    change(published / TRANSFORMER, lambda s: {**s, BUFFER: s[BUFFER] + np.float32(1e-3)})
    with pytest.raises(UserError, match=r"pos_embed differs from the sin-cos formula by 0.001"):
        recognise(published)


# ---------------------------------------------------------------------- what it can be


def test_a_whole_model_says_what_it_is(original):
    found = recognise(original)
    assert found.kind == "unialignment directory"
    assert "whole model (UniAlignment)" in found.sentence
    assert set(found.parts) == {"transformer", "text_encoder", "vae"}
    assert found.config["sample"]["shift"] == 3.0
    assert found.tokenizer == original / "tokenizer/tokenizer.json"


def test_a_training_checkpoint_needs_no_config(published, tmp_path):
    folder = tmp_path / "0005000"
    folder.mkdir()
    shutil.move(published / TRANSFORMER, folder / "consolidated.00-of-01.safetensors")
    (folder / "resume_step.txt").write_text("5000")
    with pytest.raises(UserError, match="say --heads N"):
        recognise(folder)
    found = recognise(folder, heads=2)
    assert found.kind == "training checkpoint"
    whole = found.parts["transformer"].config
    json_ = json.loads((published / "transformer/config.json").read_text())
    assert whole.heads == json_["num_attention_heads"]
    assert whole.sample_size == json_["sample_size"]
    assert whole.position_table_size == json_["pos_embed_max_size"]
    assert whole.layers == json_["num_layers"]


@pytest.mark.parametrize("component", ["transformer", "text_encoder", "vae"])
def test_a_component_alone_is_a_part_of_a_model(original, tmp_path, component):
    bundle = converted(original / component, tmp_path / "part")
    assert list(bundle.components) == [component]


@pytest.mark.parametrize(("folder", "kind"), [("qwen_vision", "qwen_vision"), ("siglip", "siglip")])
def test_a_teacher_alone(original, tmp_path, folder, kind):
    bundle = converted(GOLDENS / "components" / folder, tmp_path / "part")
    assert list(bundle.components) == [kind]
    assert bundle.description["config"][kind]


def test_a_model_without_adapters_is_a_d_dit(published, tmp_path):
    def drop(state):
        return {name: a for name, a in state.items() if "siglip_adapter" not in name}

    before = change(published / TRANSFORMER, drop)
    found = recognise(published)
    assert found.kind == "d-dit directory"
    drawn = found.notes("initialised")
    assert len(drawn) == 8 and all("siglip_adapter" in name for name in drawn)
    to_jax(found, tmp_path / "bundle")
    to_torch(open_source(tmp_path / "bundle"), tmp_path / "back", Options(adapters=False))
    assert equal(before, load_file(tmp_path / "back" / TRANSFORMER)) == []


def test_weights_in_several_files_are_read_through_their_index(published, tmp_path):
    state = load_file(published / TRANSFORMER)
    names = sorted(state)
    folder, places = published / "transformer", {}
    (published / TRANSFORMER).unlink()
    for i, part in enumerate((names[::2], names[1::2]), 1):
        file = f"diffusion_pytorch_model-{i:05}-of-00002.safetensors"
        save_file({name: state[name] for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    write(index, {"metadata": {}, "weight_map": places})
    assert equal(state, there_and_back(published, tmp_path)[TRANSFORMER]) == []
    (folder / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"00002-of-00002.safetensors: is not there, but .* lists"):
        recognise(published)


# ---------------------------------------------------------------------- the mask token


def vector_of(path: Path, **arrays: np.ndarray) -> Path:
    save_file(arrays, path)
    return path


def test_a_mask_token_becomes_the_row_of_the_mask(original, tmp_path):
    vector = np.arange(24, dtype=np.float32)
    file = vector_of(tmp_path / "mask.safetensors", mask=vector)
    bundle = converted(original, tmp_path / "bundle", vector=file)
    (leaf,) = [x for x in bundle.leaves("text_encoder") if "token_embedding" in x.path]
    table, before = leaf.read(), load_file(original / ENCODER)["shared.weight"]
    changed = np.flatnonzero(np.any(table != before, axis=1))
    mask_id = TextTokenizer.from_file(original / "tokenizer/tokenizer.json").mask_id
    assert list(changed) == [mask_id]
    np.testing.assert_array_equal(table[mask_id], vector)


def test_a_mask_token_alone_is_recognised(tmp_path):
    vector = np.arange(24, dtype=ml_dtypes.bfloat16)
    file = vector_of(tmp_path / "mask.safetensors", mask=vector)
    bundle = converted(file, tmp_path / "bundle")
    (leaf,) = bundle.leaves(MASK_TOKEN)
    assert leaf.read().tobytes() == vector.tobytes()


def test_a_mask_token_of_another_width_names_both(original, tmp_path):
    file = vector_of(tmp_path / "mask.safetensors", mask=np.zeros(25, np.float32))
    with pytest.raises(UserError, match=r"mask.safetensors: .* 25 numbers, .* 24 per token"):
        converted(original, tmp_path / "bundle", vector=file)
    assert not (tmp_path / "bundle").exists()


def test_a_pickle_of_a_tensor_is_read_and_one_of_code_is_not(original, tmp_path):
    torch = pytest.importorskip("torch")
    vector = torch.arange(24, dtype=torch.bfloat16)
    torch.save(vector, tmp_path / "mask.pth")
    bundle = converted(original, tmp_path / "bundle", vector=tmp_path / "mask.pth")
    assert bundle.components["text_encoder"]["dtype"] == "float32"
    torch.save({"run": _Code(str(tmp_path / "ran"))}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match=r"evil.pth: cannot be read as tensors alone"):
        recognise(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


class _Code:
    """What a pickle would run."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


# ---------------------------------------------------------------------- parts from a bundle


def test_a_checkpoint_takes_its_other_parts_from_a_bundle(original, tmp_path):
    converted(original, tmp_path / "base")
    base = open_components(tmp_path / "base")
    for name, refer in (("copied", False), ("referring", True)):
        bundle = converted(original / "transformer", tmp_path / name, components=base, refer=refer)
        assert set(bundle.components) == {"transformer", "text_encoder", "vae"}
        assert (tmp_path / name / "text_encoder").exists() != refer
        assert (tmp_path / name / "tokenizer.json").is_file()
        arrays = [leaf.read() for leaf in bundle.leaves("text_encoder")]
        wanted = [leaf.read() for leaf in base.leaves("text_encoder")]
        for a, b in zip(arrays, wanted, strict=True):
            np.testing.assert_array_equal(a, b)
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(UserError, match=r"`vae` lies in another bundle, \.\./base"):
        Bundle(tmp_path / "referring").shapes("vae")


def test_another_bundle_in_the_place_of_the_one_referred_to_is_noticed(published, tmp_path):
    converted(published, tmp_path / "base")
    base = open_components(tmp_path / "base")
    bundle = converted(published / "transformer", tmp_path / "new", components=base, refer=True)
    change(published / VAE, lambda s: {name: a + np.float32(1) for name, a in s.items()})
    converted(published, tmp_path / "base", overwrite=True)
    bundle.shapes("text_encoder")
    with pytest.raises(UserError, match=r"`vae` is that of \.\./base, which is not what it was"):
        Bundle(tmp_path / "new").shapes("vae")


def test_parts_of_different_models_are_refused(original, published, tmp_path):
    converted(original, tmp_path / "base")
    config = json.loads((published / "transformer/config.json").read_text())
    change(
        published / TRANSFORMER,
        lambda s: {
            **s,
            "context_embedder.weight": np.zeros(
                (config["num_attention_heads"] * config["attention_head_dim"], 30), np.float32
            ),
        },
    )
    write(published / "transformer/config.json", {**config, "joint_attention_dim": 30})
    with pytest.raises(UserError, match="text_encoder has width 24, the transformer needs 30"):
        converted(
            published / "transformer", tmp_path / "x", components=open_components(tmp_path / "base")
        )
    assert not (tmp_path / "x").exists()
