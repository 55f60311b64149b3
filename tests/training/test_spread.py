"""A step on meshes of eight devices: loss and gradients of one device, and nothing whole."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from unialign_jax import config as configs
from unialign_jax.config_files import beside
from unialign_jax.planning import collectives, hlo
from unialign_jax.training import programs, setup, state

SIDE, LENGTH, ROWS = 16, 8, 16
CONDITIONS = {"generate": 0, "edit": 1, "perceive": 1, "compose": 3, "answer": 0}
MESHES = [
    {"data": 2, "fsdp": 4},
    {"data": 2, "fsdp": 2, "context": 2},
    {"fsdp": 4, "tensor": 2},
    {"data": 8},
    {"fsdp": 8},
    {"data": 2, "context": 2, "tensor": 2},
    {"fsdp": 2, "context": 2, "tensor": 2},
]
# These programs run once: they need not be fast.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
# Above this many numbers an array counts as large.
LARGE = 1000


def name_of(mesh: dict[str, int]) -> str:
    return "x".join(f"{axis}{size}" for axis, size in mesh.items())


def tiny(mesh: dict[str, int], **changes: Any) -> dict[str, Any]:
    config = configs.to_plain(beside(__file__, "tiny_config").get_config())
    config["model"].update(initial_gates=1.0, positions_std=0.5)
    config["data"]["mixture"] = {"generate": 1.0}
    config["train"]["global_batch"] = ROWS
    config["mesh"] = {"data": 1, "fsdp": 1, "context": 1, "tensor": 1, **mesh}
    for key, value in changes.items():
        section, field = key.split("__")
        config[section][field] = value
    return config


def gradients_as_state() -> optax.GradientTransformation:
    """An optimiser that moves nothing and remembers the gradient."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda grads, _, params: (jax.tree.map(jnp.zeros_like, params), grads),
    )


def make(mesh: dict[str, int], monkeypatch, **changes: Any) -> setup.Setup:
    monkeypatch.setattr(
        setup, "make_optimizer", lambda _: (gradients_as_state(), lambda step: jnp.float32(0))
    )
    devices = jax.devices()[: math.prod(mesh.values())]
    return setup.make_setup(tiny(mesh, **changes), None, devices)


def make_batch(task: str) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    image = lambda: rng.normal(size=(ROWS, SIDE, SIDE, 3)).astype(np.float32)
    ids = rng.integers(2, 250, (2, ROWS, LENGTH)).astype(np.int32)
    weight = np.ones(ROWS, np.float32)
    weight[[3, 10]] = 0
    batch: dict[str, Any] = {
        "target": image(),
        "instruction_ids": ids[0],
        "caption_ids": ids[1],
        "caption_weight": weight,
        "conditions": tuple(image() for _ in range(CONDITIONS[task])),
        "image_features": rng.normal(size=(ROWS, 8)).astype(np.float32),
        "text_features": rng.normal(size=(ROWS, 8)).astype(np.float32),
    }
    if task == "answer":
        batch["label_mask"] = rng.random((ROWS, LENGTH)) < 0.6
    return batch


def parameters(made: setup.Setup) -> state.TrainState:
    """Random everywhere, also where a network starts with zeros: every gradient is exercised."""

    def random(path: Any, leaf: Any) -> Any:
        seed = sum(map(ord, jax.tree_util.keystr(path)))
        values = np.random.default_rng(seed).normal(size=leaf.shape) * 0.2
        return jax.device_put(values.astype(leaf.dtype), leaf.sharding)

    def zeros(leaf: Any) -> Any:
        return jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)

    params = jax.tree_util.tree_map_with_path(random, made.abstract.params)
    return jax.tree.map(zeros, made.abstract).replace(params=params)


def run(made: setup.Setup, task: str) -> tuple[Any, dict[str, float], Any]:
    """(compiled program, metrics, gradients) of one step."""
    batch = programs.place_batch(make_batch(task), made)
    compiled = programs.lower(made, task, batch).compile(QUICK)
    done, metrics = compiled(parameters(made), batch)
    return compiled, jax.tree.map(float, metrics), done.opt_state


def assert_same(mine: Any, theirs: Any, tolerance: float = 1e-5) -> None:
    """Every gradient within `tolerance` of its norm; the smallest are measured by the whole's."""
    least = 1e-4 * float(optax.tree.norm(theirs))

    def compare(path: Any, a: Any, b: Any) -> None:
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        error = np.linalg.norm(a - b) / max(np.linalg.norm(b), least)
        assert error < tolerance, (jax.tree_util.keystr(path), error)

    jax.tree_util.tree_map_with_path(compare, mine, theirs)


def assert_nothing_is_whole(made: setup.Setup) -> None:
    """Large leaves of parameters, moments and EMA lie over the axes that their rules name."""
    sizes = {axis: n for axis, n in made.mesh.shape.items() if axis in ("fsdp", "tensor") and n > 1}
    for path, leaf in jax.tree_util.tree_leaves_with_path(made.abstract):
        name = jax.tree_util.keystr(path)
        columns = "patch" in name or "time" in name or "token_embedding" in name
        if leaf.size < LARGE or columns or not sizes:
            continue
        held = math.prod(leaf.sharding.shard_shape(leaf.shape))
        wanted = sizes.get("fsdp") or sizes["tensor"]
        if "tensor" in sizes and "fsdp" not in sizes and "modulation" in name:
            continue
        assert held * wanted <= leaf.size, (name, leaf.shape, leaf.sharding)


def collective_axes(compiled: Any, made: setup.Setup) -> set[str]:
    """The mesh axes that carry a collective of the program."""
    found = collectives.find(hlo.parse(compiled.as_text()), dict(made.mesh.shape))
    return {axis for collective in found for axis in collective.axes.split("+")}


@pytest.fixture(scope="module")
def alone():
    """Loss and gradients of a task on one device."""

    @functools.cache
    def of(task: str) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            return run(make({"data": 1}, patch), task)[1:]

    return of


def check(alone: Any, monkeypatch: Any, mesh: dict[str, int], task: str) -> None:
    made = make(mesh, monkeypatch)
    compiled, metrics, grads = run(made, task)
    expected, wanted = alone(task)
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, rel=1e-5), name
    assert_same(grads, wanted)
    assert_nothing_is_whole(made)
    assert {axis for axis, size in made.mesh.shape.items() if size > 1} <= collective_axes(
        compiled, made
    )


@pytest.mark.parametrize("mesh", MESHES[:3], ids=name_of)
def test_a_mesh_gives_the_loss_and_gradients_of_one_device(alone, monkeypatch, mesh):
    check(alone, monkeypatch, mesh, "generate")


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES[3:], ids=name_of)
def test_more_meshes_give_the_loss_and_gradients_of_one_device(alone, monkeypatch, mesh):
    check(alone, monkeypatch, mesh, "generate")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["edit", "perceive", "compose", "answer"])
def test_every_task_has_the_loss_and_gradients_of_one_device(alone, monkeypatch, task):
    check(alone, monkeypatch, {"fsdp": 2, "context": 2, "tensor": 2}, task)


@pytest.mark.slow
def test_convolutions_have_the_loss_and_gradients_of_one_device(monkeypatch):
    channels = {"model__stem_channels": 8, "model__detail_channels": 8}
    _, expected, wanted = run(make({"data": 1}, monkeypatch, **channels), "edit")
    made = make({"fsdp": 2, "context": 2, "tensor": 2}, monkeypatch, **channels)
    _, metrics, grads = run(made, "edit")
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, rel=1e-5), name
    assert_same(grads, wanted)
    assert {"stem", "details"} <= set(wanted["transformer"])
