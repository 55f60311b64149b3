"""Safetensors files: equal to the library's both ways, and nothing in a header believed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from unialign_jax.convert.weight_files import DTYPES, open_weights
from unialign_jax.convert.weight_writer import Planned, write_weights
from unialign_jax.errors import UserError

STATE = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b.weight": np.arange(4).astype(ml_dtypes.bfloat16),
    "c.bias": np.array(3.5, np.float16),
    "d.empty": np.zeros((0, 4), np.float32),
    "e.flags": np.array([True, False, True]),
    "f.ids": np.arange(3),
}


def write(folder: Path, state: dict[str, np.ndarray], **options: Any) -> list[Path]:
    planned = [Planned(name, array.dtype, array.shape) for name, array in state.items()]
    return write_weights(folder, "model", planned, state.__getitem__, **options)


def assert_same(found: Any, expected: dict[str, np.ndarray]) -> None:
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


def raw_file(path: Path, header: Any, data: bytes = b"") -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def entry(places: Any = (0, 4), shape: Any = (1,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(places)}


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.safetensors", {"format": "pt"})
    weights = open_weights(tmp_path)
    assert_same(weights, STATE)
    assert weights.shapes == {name: array.shape for name, array in STATE.items()}
    assert weights.size == sum(array.nbytes for array in STATE.values())


def test_what_is_written_is_read_by_the_library(tmp_path: Path) -> None:
    (path,) = write(tmp_path, STATE)
    assert path.name == "model.safetensors"
    assert_same(load_file(path), STATE)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_every_type_returns_bit_for_bit(tmp_path: Path, dtype: np.dtype) -> None:
    state = {"x": np.arange(5).astype(dtype), "y": np.ones((2, 1), dtype)}
    write(tmp_path, state)
    assert_same(open_weights(tmp_path), state)


def test_above_the_limit_there_are_several_files_and_an_index(tmp_path: Path) -> None:
    files = write(tmp_path, STATE, limit=26)
    names = [f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)]
    assert [file.name for file in files] == [*names, "model.safetensors.index.json"]
    assert_same(open_weights(tmp_path), STATE)
    together = {name: array for file in files[:-1] for name, array in load_file(file).items()}
    assert_same(together, STATE)
    index = json.loads(files[-1].read_text())
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in STATE.values())


def test_an_array_that_was_not_planned_is_refused(tmp_path: Path) -> None:
    planned = [Planned("x", np.dtype(np.float32), (3,))]
    with pytest.raises(ValueError, match="x is float64"):
        write_weights(tmp_path, "model", planned, lambda name: np.zeros(3))


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        (b"", b"", "no safetensors file"),
        (b"{", b"", "cannot be read as JSON"),
        (b"[]", b"", "no JSON object"),
        (b"\xff{}", b"", "cannot be read as JSON"),
        (b"[" * 100_000, b"", "cannot be read as JSON"),
        ({"x": entry()}, b"\0" * 3, "cut short"),
        ({"x": entry()}, b"\0" * 5, "written over"),
        ({"x": entry((0, 8))}, b"\0" * 8, "another size"),
        ({"x": entry((4, 8))}, b"\0" * 8, "x does not begin"),
        ({"x": entry(), "y": entry()}, b"\0" * 4, "does not begin"),
        ({"x": entry((4, 0))}, b"\0" * 4, "another size"),
        ({"x": entry((-4, 0))}, b"\0" * 4, "no list of counts"),
        ({"x": entry(shape=(1.0,))}, b"\0" * 4, "no list of counts"),
        ({"x": entry(shape=(True,))}, b"\0" * 4, "no list of counts"),
        ({"x": entry(shape=(2**40, 2**40))}, b"\0" * 4, "another size"),
        ({"x": entry((0,))}, b"\0" * 4, "no place of two numbers"),
        ({"x": entry(dtype="F8_E4M3")}, b"\0", "dtype 'F8_E4M3'"),
        ({"x": entry(dtype=["F32"])}, b"\0" * 4, "dtype"),
        ({"x": 3}, b"", "is no object"),
        ({"x": {"dtype": "F32"}}, b"", "lacks"),
        ({"x": {**entry(), "more": 1}}, b"\0" * 4, "unknown fields"),
        (b'{"x":%s,"x":%s}' % ((json.dumps(entry()).encode(),) * 2), b"\0" * 4, "names x twice"),
    ],
)
def test_a_lying_header_is_refused(tmp_path: Path, header: Any, data: bytes, words: str) -> None:
    path = raw_file(tmp_path / "x.safetensors", header, data)
    with pytest.raises(UserError, match=words) as caught:
        open_weights(path)
    assert str(path) in str(caught.value)


def test_a_file_that_shrinks_is_noticed(tmp_path: Path) -> None:
    (path,) = write(tmp_path, STATE)
    weights = open_weights(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="became shorter"):
        dict(weights)


@pytest.fixture
def sharded(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    *_, index = write(tmp_path, STATE, limit=34)
    return index, json.loads(index.read_text())


def _unlisted(index: dict[str, Any]) -> None:
    del index["weight_map"]["a.weight"]


def _without_a_file(index: dict[str, Any]) -> None:
    places = index["weight_map"]
    first = places["a.weight"]
    index["weight_map"] = {name: file for name, file in places.items() if file != first}


def _in_another(index: dict[str, Any]) -> None:
    places = index["weight_map"]
    places["a.weight"] = places["f.ids"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_unlisted, "a.weight"),
        (_without_a_file, "lists 1 of the 2 files of model"),
        (_in_another, "a.weight"),
        (lambda index: index.pop("weight_map"), "no weight_map"),
        (lambda index: index["weight_map"].update(x=3), "no weight_map"),
        (lambda index: index["weight_map"].update(x="gone.safetensors"), "gone.*is not there"),
        (lambda index: index["weight_map"].update(x="../m.safetensors"), "only .* beside it"),
        (lambda index: index["weight_map"].update(x="/etc/m.safetensors"), "only .* beside it"),
        (lambda index: index["weight_map"].update(x="..\\m.safetensors"), "only .* beside it"),
        (lambda index: index["weight_map"].update(x="config.json"), "only .* beside it"),
        (lambda index: index["weight_map"].update(x=""), "only .* beside it"),
    ],
)
def test_a_lying_index_is_refused(sharded, change: Callable[[Any], Any], words: str) -> None:
    path, index = sharded
    change(index)
    path.write_text(json.dumps(index))
    with pytest.raises(UserError, match=words):
        open_weights(path)


def test_a_tensor_in_two_files_is_refused(sharded) -> None:
    path, _ = sharded
    first, second = sorted(path.parent.glob("*.safetensors"))[:2]
    save_file(load_file(first) | load_file(second), second)
    with pytest.raises(UserError, match="does not hold what"):
        open_weights(path)


def test_a_folder_with_none_or_several_asks_for_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no \.safetensors file; name the one"):
        open_weights(tmp_path)
    for name in "ab":
        save_file({"x": np.zeros(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match=r"a\.safetensors, b\.safetensors; name the one"):
        open_weights(tmp_path)
    with pytest.raises(UserError, match="is not there"):
        open_weights(tmp_path / "c.safetensors")


@pytest.mark.parametrize("seed", range(60))
def test_damaged_headers_and_indexes_never_pass_in_silence(tmp_path: Path, seed: int) -> None:
    """Ten random changes a seed: each is refused, or leaves exactly what the library reads too."""
    rng = random.Random(seed)
    *_, index = write(tmp_path, STATE, limit=26)
    shard = sorted(tmp_path.glob("*.safetensors"))[0]
    for _ in range(10):
        target = rng.choice([index, shard])
        whole = target.read_bytes()
        target.write_bytes(_damaged(whole, rng, len(whole) if target is index else 250))
        try:
            found = dict(open_weights(index))
        except UserError as error:
            assert len(str(error)) < 3000
        else:
            try:
                expected = {}
                for file in set(json.loads(index.read_text())["weight_map"].values()):
                    expected |= load_file(tmp_path / file)
            except (SafetensorError, ValueError) as error:
                raise AssertionError("read what the library refuses") from error
            assert_same(found, expected)
        target.write_bytes(whole)


def _damaged(raw: bytes, rng: random.Random, reach: int) -> bytes:
    """Bytes changed, removed, doubled or cut among the first `reach`."""
    raw, reach = bytearray(raw), min(reach, len(raw))
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(reach)
        how = rng.randrange(5)
        if how == 0:
            raw[at : at + 1] = bytes([rng.randrange(256)])
        elif how == 1:
            raw[at : at + 1] = rng.choice(b'0123456789{}[]",:').to_bytes(1, "little")
        elif how == 2:
            del raw[at : at + rng.randint(1, 4)]
        elif how == 3:
            raw[at:at] = raw[at : at + rng.randint(1, 20)]
        else:
            del raw[max(at, 1) :]
        reach = max(1, min(reach, len(raw)))
    return bytes(raw)
