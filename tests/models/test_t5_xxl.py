"""T5-XXL in bfloat16 over eight devices: compiled at its real size, nothing allocated."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unialign_jax.models import functional
from unialign_jax.models.t5 import T5Config, T5Encoder
from unialign_jax.parallel import rules
from unialign_jax.parallel.mesh import MeshConfig, make_mesh

LARGE = 2**20


@pytest.mark.slow
def test_the_encoder_at_its_real_size_is_split_over_the_devices():
    config = T5Config(dtype="bfloat16", param_dtype="bfloat16")
    network = functional.build(lambda rngs: T5Encoder(config, rngs))
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    places = rules.shardings(network.axes, network.abstract, mesh)
    params = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        network.abstract,
        places,
    )
    total = part = 0
    for leaf in jax.tree.leaves(params):
        assert leaf.dtype == jnp.bfloat16
        assert leaf.size < LARGE or not leaf.sharding.is_fully_replicated
        total += leaf.size
        part += int(np.prod(leaf.sharding.shard_shape(leaf.shape)))
    assert 4.7e9 < total < 4.8e9
    assert part < total / 7.9
    ids = jax.ShapeDtypeStruct((8, 256), jnp.int32, sharding=rules.batch_sharding(mesh))
    compiled = jax.jit(lambda p, ids: network.bind(p)(ids)).lower(params, ids).compile()
    memory = compiled.memory_analysis()
    assert memory.argument_size_in_bytes < 2.02 * part + 2**20
    assert "all-gather" in compiled.as_text()
