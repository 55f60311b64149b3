"""Memory of hardware without a compiler here: what a device keeps does not depend on how many."""

from __future__ import annotations

import pytest

from tests.planning.stage import stage
from unialign_jax.planning import guess
from unialign_jax.planning.batch import Case, abstract_batch, setup_for
from unialign_jax.planning.topology import parse, stand_ins
from unialign_jax.training import programs


def kept_per_device(name: str, **values: int) -> float:
    devices = stand_ins(parse(name).devices)
    per_device = 4
    setup = setup_for(stage(train__global_batch=per_device * len(devices), **values), devices)
    batch = abstract_batch(setup, Case("generate"))
    jaxpr = programs.trace(setup, "generate", batch).jaxpr
    return guess.residual_bytes(jaxpr) / len(devices)


def test_activations_of_a_device_are_counted_once_under_any_mesh():
    alone = kept_per_device("gpu:h200")
    halves = kept_per_device("gpu:h200:4", mesh__fsdp=2)
    quarters = kept_per_device("gpu:h200:4", mesh__fsdp=4)
    # Activations, and this device's shard of the weights: a + w, a + w / 2, a + w / 4.
    assert alone - halves == pytest.approx(2 * (halves - quarters), rel=0.01)
    activations = 2 * halves - alone
    assert activations > 0.3 * alone
