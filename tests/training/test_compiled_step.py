"""What the TPU's compiler makes of the spread step: which weights travel, how, and how often."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tests.planning.stage import stage
from unialign_jax.planning import collectives, hlo, store, topology
from unialign_jax.planning.batch import Case, abstract_batch, setup_for
from unialign_jax.training import programs

WIDTH, LAYERS, FSDP = 1536, 5, 64
# The kernels of one stream's block, as they are gathered and as their gradients are scattered.
GATHERED = ("bf16[1536,4608]", "bf16[1,1536,1536]", "bf16[1,1536,6144]", "bf16[1,6144,1536]")
SCATTERED = ("f32[1536,4608]", "f32[1536,6144]", "f32[6144,1536]")
STREAMS = 2


def compiled(branches: str) -> list[collectives.Collective]:
    """The collectives of a step with both branches and blocks of the published width."""
    pytest.importorskip("libtpu")
    target = topology.parse("v5e:16x16")
    config = stage(data__image_size=256, data__text_length=128, mesh__fsdp=FSDP)
    config["model"].update(width=WIDTH, heads=24, layers=LAYERS, remat="full", branches=branches)
    # Two loops of two layers and the last: a loop of one would be unrolled, its gathers kept.
    config["objective"]["align_depth"] = 2
    config["train"].update(global_batch=2 * target.devices)
    setup = setup_for(config, topology.devices(target))
    traced = programs.trace(setup, "generate", abstract_batch(setup, Case("generate")))
    done = store.compile_lowered(traced.lower(), target.name, target.slices, -1.0)
    assert not done.error
    return collectives.find(hlo.parse(done.text), dict(setup.mesh.shape))


@pytest.fixture(scope="module")
def found() -> list[collectives.Collective]:
    return compiled("together")


def over_fsdp(found: list[collectives.Collective]) -> Counter[tuple[str, str]]:
    """Executions by kind and array."""
    moved: Counter[tuple[str, str]] = Counter()
    for one in found:
        if one.axes == "fsdp":
            moved[one.kind, one.array] += one.executions
    return moved


def size(array: str) -> int:
    """Elements of `f32[2,3]`."""
    return int(np.prod([int(n) for n in array.split("[")[1].rstrip("]").split(",") if n]))


@pytest.mark.slow
def test_no_gradient_of_a_whole_weight_is_summed_where_it_could_be_scattered(found) -> None:
    summed = [one for one in found if one.kind == "all-reduce" and "fsdp" in one.axes]
    assert summed
    assert [one for one in summed if size(one.array) >= WIDTH * WIDTH] == []


@pytest.mark.slow
def test_each_layer_s_weights_travel_once_per_direction_for_both_branches(found) -> None:
    moved = over_fsdp(found)
    for array in SCATTERED:
        assert moved["reduce-scatter", array] == STREAMS * LAYERS, array
    for array in GATHERED:
        # Forward and, recomputed, backward; the last block goes from one to the other at once.
        assert moved["all-gather", array] in range(
            STREAMS * (2 * LAYERS - 1), 2 * STREAMS * LAYERS + 1
        ), array


@pytest.mark.slow
def test_over_data_only_shards_of_gradients_are_summed(found) -> None:
    over_data = [one for one in found if one.axes == "data"]
    assert {one.kind for one in over_data} == {"all-reduce"}
    assert all(size(one.array) <= LAYERS * 6 * WIDTH * WIDTH // FSDP for one in over_data)


@pytest.mark.slow
def test_branches_apart_gather_and_scatter_twice_as_often(found) -> None:
    together, apart = over_fsdp(found), over_fsdp(compiled("apart"))
    moves = [("reduce-scatter", array) for array in SCATTERED]
    moves += [("all-gather", array) for array in GATHERED]
    for key in moves:
        # Less what a branch leaves out of its last block.
        assert 2 * together[key] - 2 * STREAMS <= apart[key] <= 2 * together[key], key
