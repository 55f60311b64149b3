"""What lies over the mesh axes left to the compiler: tokens over `context`, images whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    Image = Float[Array, "B H W C"]

AXIS = "context"


def over_context(x: Float[Array, "B T D"], what: str) -> Float[Array, "B T D"]:
    """Constrains the tokens to lie over `context`, if the mesh in `jax.set_mesh` has such devices.

    Args:
      x: a stream of tokens.
      what: its name, for the error.

    Raises:
      ValueError: their number does not divide by `mesh.context`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or AXIS not in mesh.axis_names or mesh.shape[AXIS] == 1:
        return x
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    if types[AXIS] != AxisType.Auto:
        return x
    if x.shape[1] % mesh.shape[AXIS]:
        raise ValueError(
            f"the {what} stream has {x.shape[1]} tokens, which mesh.context={mesh.shape[AXIS]} "
            "does not divide: choose another mesh.context or another length"
        )
    return jax.lax.with_sharding_constraint(x, P(P.UNCONSTRAINED, AXIS, P.UNCONSTRAINED))


def whole_vocabulary(logits: Float[Array, "B L V"]) -> Float[Array, "B L V"]:
    """Constrains the last axis not to lie over `tensor`, as the head's columns do.

    The loss looks up one logit per token; XLA's partitioner aborts on a look-up along a dimension
    over `tensor` where tokens lie over `context`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape.get("tensor", 1) == 1:
        return logits
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    if types["tensor"] != AxisType.Auto:
        return logits
    return jax.lax.with_sharding_constraint(logits, P(P.UNCONSTRAINED, P.UNCONSTRAINED, None))


def whole_images(x: Image) -> Image:
    """Constrains images to be whole on the devices of `context` and `tensor`.

    XLA's partitioner (jax 0.10.2) sums the gradient of a convolution's kernel twice where its image
    lies over one of these axes and the mesh has both.
    """
    mesh = jax.sharding.get_abstract_mesh()
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    left = [axis for axis in (AXIS, "tensor") if mesh.shape.get(axis, 1) > 1]
    if not any(types[axis] == AxisType.Auto for axis in left):
        return x
    return jax.lax.with_sharding_constraint(x, P(P.UNCONSTRAINED, None, None, None))
