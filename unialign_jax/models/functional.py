"""Flax NNX modules used functionally: a static graph and a plain nested dict of arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Functional:
    """A module split into its structure and its parameters.

    Parameters are nested dicts of arrays from `init` to checkpoint: nothing of the framework is
    stored, and `jax.jit`, `jax.grad` and `jax.lax.scan` see ordinary pytrees.

    Attributes:
      make: builds the module from random streams.
      graphdef: the static half of `nnx.split`.
      abstract: nested dict of `jax.ShapeDtypeStruct`, the shapes of the parameters.
      axes: nested dict of the same structure; each leaf is a tuple with one logical axis name
        (or None) per dimension, without the leading layer axis of stacked blocks.
      compute: nested dict of the same structure; each leaf is the dtype in which the network reads
        that parameter, None where that is the parameter's own.
    """

    make: Callable[[nnx.Rngs], nnx.Module]
    graphdef: Any
    abstract: Params
    axes: Params
    compute: Params

    def init(self, key: jax.Array) -> Params:
        """Returns fresh parameters for a PRNG key; pure, so it can run under `jax.jit`."""
        return nnx.to_pure_dict(nnx.state(self.make(nnx.Rngs(key)), nnx.Param))

    def bind(self, params: Params) -> Any:
        """Returns the module over `params`, usable inside any JAX transformation."""
        return nnx.merge(self.graphdef, params)


def build(make: Callable[[nnx.Rngs], nnx.Module]) -> Functional:
    """Builds the functional form of a module without allocating a parameter.

    Args:
      make: a function from `nnx.Rngs` to the module.
    """
    graphdef, state = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))), nnx.Param)

    def metadata(name: str) -> Params:
        return _plain(
            jax.tree.map(
                lambda v: v.get_metadata().get(name),
                state,
                is_leaf=lambda v: isinstance(v, nnx.Variable),
            )
        )

    abstract = nnx.to_pure_dict(state)
    return Functional(make, graphdef, abstract, metadata("axes"), metadata("compute"))


def count_parameters(tree: Params) -> int:
    """Returns the number of scalars in a tree of arrays or of `jax.ShapeDtypeStruct`."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _plain(node: Any) -> Any:
    if isinstance(node, tuple | str) or node is None:
        return node
    return {key: _plain(node[key]) for key in node}
