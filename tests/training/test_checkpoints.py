"""Checkpoints: exact, sharded, atomic, and readable past damage."""

from __future__ import annotations

import functools
import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from unialign_jax.bundle.damage import fingerprint
from unialign_jax.bundle.weights import load_params
from unialign_jax.errors import UserError
from unialign_jax.parallel import rules
from unialign_jax.parallel.mesh import MeshConfig, make_mesh
from unialign_jax.training import state as train_state
from unialign_jax.training.checkpoints import Checkpoints
from unialign_jax.training.optimizer import OptimizerConfig, make_optimizer
from unialign_jax.training.state import TrainState

CONFIG = {"seed": 0, "model": {"width": 8}, "train": {"steps": 10}}


@functools.cache
def make_state(width: int = 8, fsdp: int = 4, value: float = 0.0) -> TrainState:
    mesh = make_mesh(MeshConfig(fsdp=fsdp))
    tx, _ = make_optimizer(OptimizerConfig())

    def init() -> TrainState:
        kernel = jax.random.normal(jax.random.key(0), (width, 16)) + value
        params = {
            "transformer": {"kernel": kernel, "null_image": jnp.ones((2, width))},
            "text_encoder": {"embedding": jnp.arange(12, dtype=jnp.bfloat16).reshape(3, 4)},
        }
        return train_state.create(params, tx, train_text_encoder=False, with_ema=True)

    abstract = jax.eval_shape(init)

    def place(leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        shape = leaf.shape
        return NamedSharding(mesh, P("fsdp") if shape and shape[0] % fsdp == 0 else P())

    return jax.jit(init, out_shardings=jax.tree.map(place, abstract))()


def abstract_of(state: TrainState) -> TrainState:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def assert_equal(a: object, b: object) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's checkpoints/, saved at the steps 1, 2 and 4, of which two are kept."""
    path = tmp_path_factory.mktemp("saved") / "checkpoints"
    path.mkdir()
    checkpoints = Checkpoints(path, keep=2)
    for step in (1, 2, 4):
        checkpoints.save(make_state(value=step), step, CONFIG, {"next_step": step})
    checkpoints.close()
    return path


@pytest.fixture
def directory(saved: Path, tmp_path: Path) -> Path:
    """A copy of `saved` that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "run" / "checkpoints"))


def restore(directory: Path, state: TrainState, config: dict = CONFIG) -> TrainState | None:
    checkpoints = Checkpoints(directory, keep=2)
    try:
        return checkpoints.restore(abstract_of(state), config)
    finally:
        checkpoints.close()


def damage(directory: Path, step: int, how: str) -> None:
    folder = directory / str(step)
    files = sorted(folder.glob("transformer/d/*"), key=os.path.getsize)
    if how == "truncated":
        files[-1].write_bytes(files[-1].read_bytes()[:-40])
    elif how == "flipped":
        content = bytearray(files[-1].read_bytes())
        content[len(content) // 2] ^= 0xFF
        files[-1].write_bytes(bytes(content))
    elif how == "other fingerprint":
        metadata = folder / "_CHECKPOINT_METADATA"
        tree = json.loads(metadata.read_text())
        tree["custom_metadata"]["fingerprints"]["transformer"] ^= 1
        metadata.write_text(json.dumps(tree))
    elif how == "missing":
        shutil.rmtree(folder / "opt_state")
    elif how == "no metadata":
        (folder / "_CHECKPOINT_METADATA").unlink()
    elif how == "empty":
        shutil.rmtree(folder)
        folder.mkdir()


def test_only_the_latest_checkpoints_are_kept(directory: Path) -> None:
    assert sorted(path.name for path in directory.iterdir()) == ["2", "4"]


def test_the_newest_checkpoint_is_restored_exactly_in_its_shardings(directory: Path) -> None:
    wanted = make_state(value=4)
    restored = restore(directory, wanted)
    assert restored is not None and int(restored.step) == 4
    assert_equal(restored.replace(step=wanted.step), wanted)
    same = jax.tree.map(lambda a, b: a.sharding == b.sharding, restored, wanted)
    assert all(jax.tree.leaves(same))


def test_a_checkpoint_is_restored_on_another_mesh(directory: Path) -> None:
    wanted = make_state(fsdp=2, value=4)
    restored = restore(directory, wanted)
    assert restored is not None
    assert_equal(restored.params, wanted.params)
    assert restored.params["transformer"]["kernel"].sharding.mesh.shape["fsdp"] == 2


def test_a_run_without_checkpoints_restores_nothing(tmp_path: Path) -> None:
    assert restore(tmp_path / "none", make_state()) is None


@pytest.mark.parametrize(
    "how", ["truncated", "flipped", "other fingerprint", "missing", "no metadata", "empty"]
)
def test_a_damaged_checkpoint_is_named_and_passed_over(directory: Path, how: str) -> None:
    damage(directory, 4, how)
    with pytest.warns(UserWarning, match=f"damaged checkpoint: {directory / '4'}"):
        restored = restore(directory, make_state())
    assert restored is not None and int(restored.step) == 2
    assert_equal(restored.params, make_state(value=2).params)
    assert sorted(path.name for path in directory.iterdir()) == ["2", "4.damaged"]


def test_after_a_damaged_checkpoint_its_step_can_be_saved_again(directory: Path) -> None:
    damage(directory, 4, "truncated")
    checkpoints = Checkpoints(directory, keep=2)
    with pytest.warns(UserWarning, match="damaged"):
        checkpoints.restore(abstract_of(make_state()), CONFIG)
    checkpoints.save(make_state(value=9), 4, CONFIG, {})
    checkpoints.close()
    restored = restore(directory, make_state())
    assert restored is not None
    assert_equal(restored.params, make_state(value=9).params)


@pytest.mark.filterwarnings("ignore:passing over")
def test_when_every_checkpoint_is_damaged_training_does_not_start_over(directory: Path) -> None:
    damage(directory, 4, "truncated")
    damage(directory, 2, "missing")
    with pytest.raises(UserError, match=r"no checkpoint can be read(.|\n)*4(.|\n)*2"):
        restore(directory, make_state())
    assert sorted(path.name for path in directory.iterdir()) == ["2", "4"]


def test_an_interrupted_save_is_ignored(directory: Path) -> None:
    shutil.copytree(directory / "4", directory / "6.orbax-checkpoint-tmp")
    restored = restore(directory, make_state())
    assert restored is not None and int(restored.step) == 4


def test_a_checkpoint_of_another_shape_lists_the_mismatching_arrays(directory: Path) -> None:
    with pytest.raises(UserError) as caught:
        restore(directory, make_state(width=12))
    message = str(caught.value)
    assert "transformer/kernel: float32[8, 16] in the checkpoint, float32[12, 16]" in message
    assert str(directory / "4") in message


def test_a_checkpoint_of_another_config_lists_the_differing_keys(directory: Path) -> None:
    other = {"seed": 1, "model": {"width": 8}, "train": {"steps": 20}}
    with pytest.raises(UserError, match="seed: 0 -> 1"):
        restore(directory, make_state(), other)


def test_other_values_are_accepted_on_demand_but_other_shapes_never(directory: Path) -> None:
    other = {"seed": 1, "model": {"width": 8}, "train": {"steps": 20}}
    checkpoints = Checkpoints(directory)
    assert checkpoints.restore(abstract_of(make_state()), other, accept_changes=True) is not None
    with pytest.raises(UserError, match="transformer/kernel"):
        checkpoints.restore(abstract_of(make_state(width=12)), other, accept_changes=True)
    checkpoints.close()


def test_a_longer_run_of_the_same_config_continues(directory: Path) -> None:
    longer = {**CONFIG, "train": {"steps": 20}}
    assert restore(directory, make_state(), longer) is not None


def test_weights_are_loaded_without_the_optimiser(directory: Path) -> None:
    state = make_state(value=4)
    for weights, part in (("ema", state.ema), ("raw", state.params)):
        params, step = load_params(directory.parent, weights)
        assert step == 4
        assert_equal(params, {**state.params, **part})
        assert params["transformer"]["kernel"].devices() == {jax.devices()[0]}


def test_a_chosen_step_is_loaded_and_an_unknown_one_named(directory: Path) -> None:
    params, step = load_params(directory.parent, "raw", step=2)
    assert step == 2
    assert_equal(params, make_state(value=2).params)
    with pytest.raises(UserError, match=r"no checkpoint of step 3; there are \[2, 4\]"):
        load_params(directory.parent, "raw", step=3)


def test_loading_from_a_folder_that_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run directory"):
        load_params(tmp_path)


def test_a_donated_state_does_not_disturb_the_save_in_progress(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints"
    checkpoints = Checkpoints(path)
    big = jax.random.normal(jax.random.key(1), (2048, 512))
    state = TrainState(jnp.int32(0), {"transformer": {"w": big}}, {"count": jnp.int32(0)}, None)
    expected = np.array(big)
    add = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    checkpoints.save(state, 1, CONFIG, {})
    for _ in range(3):
        state = add(state)
    checkpoints.close()
    restored = restore(path, state)
    assert restored is not None
    np.testing.assert_array_equal(restored.params["transformer"]["w"], expected)


def test_a_full_disk_is_reported_with_the_directory(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(directory)

    def no_space(*_: object, **__: object) -> None:
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device [os_error_code='28']")

    monkeypatch.setattr(checkpoints._checkpointer, "wait", no_space)
    with pytest.raises(
        UserError, match=f"{directory}: a checkpoint cannot be written: no space left on"
    ):
        checkpoints.wait()


def test_a_read_only_disk_is_reported_before_a_save_begins(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(directory)

    def read_only(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "write_bytes", read_only)
    with pytest.raises(UserError, match="Read-only file system"):
        checkpoints.save(make_state(), 6, CONFIG, {})


def test_a_fingerprint_sees_one_flipped_bit_and_no_sharding() -> None:
    mesh = make_mesh(MeshConfig(fsdp=8))
    x = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
    y = x.copy()
    y.view(np.uint32)[3, 3] ^= 1
    sharded = jax.device_put(x, NamedSharding(mesh, P("fsdp")))
    assert fingerprint({"x": sharded}) == fingerprint({"x": jnp.asarray(x)})
    assert fingerprint({"x": jnp.asarray(y)}) != fingerprint({"x": jnp.asarray(x)})
    assert rules.replicated(mesh).is_fully_replicated
