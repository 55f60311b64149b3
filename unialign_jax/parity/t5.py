"""Group `components`: the text encoder."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unialign_jax.convert import t5_names as names
from unialign_jax.models import functional
from unialign_jax.models.t5 import T5Block, T5Encoder
from unialign_jax.parity.golden import GoldenDirectory

FOLDER = "components/t5_encoder"
RESULTS = "components/t5_io.npz"
FIRST = 7


def golden_t5(goldens: GoldenDirectory, folder: str = FOLDER) -> T5Encoder:
    """The golden encoder over its weights."""
    config = names.t5_config_from_json(goldens.json(f"{folder}/config.json"))
    params = names.t5_from_torch(goldens.open(f"{folder}/model.safetensors").all(), config)
    build = functional.build(lambda rngs: T5Encoder(config, rngs))
    return build.bind(jax.tree.map(jnp.asarray, params))


def verify(goldens: GoldenDirectory) -> None:
    """Compares the embeddings, with and without a mask, and the state after every block."""
    if not goldens.lists(RESULTS):
        return
    model, file = golden_t5(goldens), goldens.open(RESULTS)
    ids = file.get("input_ids").astype(np.int32)
    mask = file.get("attention_mask").astype(bool)
    file.check("out", model(ids))
    file.check("out_masked", model(ids, mask))
    file.check("out_first7", model(ids[:, :FIRST]))
    bias = model.position_bias(ids.shape[1])
    file.check("position_bias", bias[None])
    states = _states(model, ids, bias)
    for key in [key for key in file.arrays if key.startswith("hidden_")]:
        file.check(key, states[int(key.removeprefix("hidden_"))])


def _states(model: T5Encoder, ids: Any, bias: Any) -> list[Any]:
    """The embeddings and the states behind each block, the last one normed."""
    x = model.token_embedding(ids)
    states = [x]
    structure, layers = nnx.split(model.blocks)
    for i in range(model.config.layers):
        block: T5Block = nnx.merge(structure, jax.tree.map(lambda leaf, i=i: leaf[i], layers))
        x = block(x, bias, None)
        states.append(x)
    states[-1] = model.final_norm(states[-1])
    return states
