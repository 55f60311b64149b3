"""Logical axes to shardings, up to every leaf of a train state on eight devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from unialign_jax.models import functional
from unialign_jax.models.mmdit import MMDiT
from unialign_jax.models.mmdit_config import MMDiTConfig
from unialign_jax.models.t5 import T5Config, T5Encoder
from unialign_jax.parallel import rules
from unialign_jax.parallel.mesh import MeshConfig, make_mesh
from unialign_jax.training import state as train_state
from unialign_jax.training.optimizer import OptimizerConfig, make_optimizer

SMALL = MMDiTConfig(
    width=32,
    heads=4,
    layers=2,
    channels=3,
    text_width=16,
    vocab_size=64,
    sample_size=8,
    position_table_size=8,
    adapter_hidden=16,
    adapter_out=8,
)
ENCODER = T5Config(vocab_size=64, width=16, kv_dim=8, heads=2, layers=1, mlp_width=32)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))


@pytest.mark.parametrize(
    ("axes", "shape", "stacked", "expected"),
    [
        (("embed", "mlp"), (32, 64), False, P("fsdp", "tensor")),
        (("mlp", "embed"), (24, 64, 32), True, P(None, "tensor", "fsdp")),
        (("embed", None, "heads", "kv"), (32, 3, 4, 16), False, P("fsdp", None, "tensor")),
        (("text_embed", "embed"), (16, 32), False, P("fsdp")),  # an axis is used once
        (("vocab", "embed"), (63, 32), False, P(None, "fsdp")),  # 63 does not divide by 2
        ((None,), (32,), False, P()),
        (None, (3, 5), False, P()),
        (("batch", None), (8, 3), False, P(("data", "fsdp"))),
    ],
)
def test_a_name_becomes_a_mesh_axis(mesh, axes, shape, stacked, expected) -> None:
    assert rules.partition_spec(axes, shape, mesh, stacked=stacked) == expected


def test_a_mesh_axis_of_one_device_shards_nothing() -> None:
    mesh = make_mesh(MeshConfig(data=8))
    assert rules.partition_spec(("embed", "mlp"), (32, 64), mesh) == P()


def test_an_unknown_name_is_reported_with_the_parameter(mesh) -> None:
    tree = {"a": {"kernel": jax.ShapeDtypeStruct((4, 4), jnp.float32)}}
    with pytest.raises(ValueError, match="a/kernel: logical axis `width` is not in the rules"):
        rules.shardings({"a": {"kernel": ("width", None)}}, tree, mesh)
    with pytest.raises(ValueError, match="a/kernel: logical axes"):
        rules.shardings({"a": {"kernel": ("embed",)}}, tree, mesh)


def test_every_axis_that_the_models_name_is_in_the_table(mesh) -> None:
    for make in (lambda r: MMDiT(MMDiTConfig(), r), lambda r: T5Encoder(T5Config(), r)):
        model = functional.build(make)
        placed = rules.shardings(model.axes, model.abstract, mesh)
        for (path, leaf), place in zip(
            jax.tree_util.tree_leaves_with_path(model.abstract),
            jax.tree.leaves(placed),
            strict=True,
        ):
            held = np.prod(place.shard_shape(leaf.shape))
            if leaf.size > 10_000_000:
                assert held * 4 <= leaf.size, f"{jax.tree_util.keystr(path)} is {place.spec}"


def test_parameters_moments_and_average_are_sharded_leaf_by_leaf_as_the_rules_say(mesh) -> None:
    models = {
        "transformer": functional.build(lambda rngs: MMDiT(SMALL, rngs)),
        "text_encoder": functional.build(lambda rngs: T5Encoder(ENCODER, rngs)),
    }
    tx, _ = make_optimizer(OptimizerConfig())
    places = {
        name: rules.shardings(model.axes, model.abstract, mesh) for name, model in models.items()
    }

    def create() -> train_state.TrainState:
        params = {name: model.init(jax.random.key(0)) for name, model in models.items()}
        return train_state.create(params, tx, train_text_encoder=True, with_ema=True)

    abstract = jax.eval_shape(create)
    shardings = train_state.TrainState(
        step=rules.replicated(mesh),
        params=places,
        opt_state=rules.optimizer_shardings(abstract.opt_state, abstract.params, places, mesh),
        ema=places,
    )
    state = jax.jit(create, out_shardings=shardings)()

    by_path = {
        jax.tree_util.keystr(path): leaf.sharding
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)
    }
    kernel = "['transformer']['blocks']['layers']['image']['up']['kernel']"
    assert by_path[kernel].spec == P(None, "fsdp", "tensor")
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.ema):
        assert leaf.sharding == by_path[jax.tree_util.keystr(path)]

    adam = optax.tree_utils.tree_get_all_with_path(state.opt_state, "mu")
    adam += optax.tree_utils.tree_get_all_with_path(state.opt_state, "nu")
    assert len(adam) == 2
    checked = 0
    for _, moments in adam:
        for path, leaf in jax.tree_util.tree_leaves_with_path(moments):
            assert leaf.sharding == by_path[jax.tree_util.keystr(path)], path
            checked += 1
    assert checked == 2 * (len(by_path) - 1)  # the null image is frozen and has no moments

    # A quarter over fsdp, some of it an eighth with tensor; the rest are small arrays.
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert held < 0.26 * whole


def test_plain_jit_of_the_optimiser_would_replicate_the_moments(mesh) -> None:
    """Why `optimizer_shardings` exists; should this fail, JAX has learnt to do without it."""
    params = {"kernel": jax.ShapeDtypeStruct((32, 64), jnp.float32)}
    place = rules.shardings({"kernel": ("embed", "mlp")}, params, mesh)
    params = jax.device_put({"kernel": jnp.ones((32, 64))}, place)
    state = jax.jit(optax.adam(1e-3).init)(params)
    assert state[0].mu["kernel"].sharding.is_fully_replicated
