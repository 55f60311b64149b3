"""Loss and gradients of a batch: over micro-batches, on one device or spread over a mesh.

On a mesh the whole computation stands inside one `jax.shard_map` over `data` and `fsdp`. A device
works on its rows of the batch, gathers each layer's weights as it comes to them, and is left with
its part of the gradients, summed over `fsdp` by the gathers' backward pass, micro-batch for
micro-batch. Over `data`, which may cross slow links, they are summed once, at the end.
`context` and `tensor` are the compiler's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from unialign_jax.models.functional import Functional, Params
from unialign_jax.objective import Batch, Draws
from unialign_jax.parallel.rows import ALL_ROWS, Rows
from unialign_jax.parallel.rules import BATCH_AXES, STACKED
from unialign_jax.parallel.storage import AXIS, Gathered, dimension


@dataclasses.dataclass(frozen=True)
class Spread:
    """How the parameters lie on a mesh of several devices.

    Attributes:
      mesh: the mesh.
      specs: PartitionSpecs of all parameters, by network.
      reduce_dtype: in which gradients are summed over `fsdp`.
    """

    mesh: Mesh
    specs: Params
    reduce_dtype: str = "float32"

    @property
    def manual(self) -> frozenset[str]:
        """The axes that are written by hand: those of the batch, and any of one device."""
        return frozenset(
            axis for axis, size in self.mesh.shape.items() if axis in BATCH_AXES or size == 1
        )

    def storage(self, name: str, network: Functional) -> Gathered:
        """How the parameters of a network are made whole."""
        return Gathered(
            self.specs[name],
            network.compute,
            stacked_path(network.abstract),
            self.reduce_dtype,
        )


@dataclasses.dataclass(frozen=True)
class Place:
    """What one device is to a loss: its rows of the batch and how it gets at the weights."""

    rows: Rows = ALL_ROWS
    spread: Spread | None = None

    def bind(self, name: str, network: Functional, params: Params) -> tuple[Any, dict[str, Any]]:
        """The network over its parameters, and what else its call needs to be told."""
        if self.spread is None:
            return network.bind(params), {}
        storage = self.spread.storage(name, network)
        return network.bind(storage.outside(params, left=(STACKED,))), {"storage": storage}


# (trainable part, all parameters, rows of a batch, their draws, step, place) -> loss, terms
Loss = Callable[[Any, Any, Batch, Draws, Any, Place], tuple[Any, Any]]
Draw = Callable[[Any, Batch], Draws]


def gradients(
    loss: Loss,
    part: Params,
    params: Params,
    batch: Batch,
    key: Any,
    step: Any,
    *,
    draw: Draw,
    micro_batches: int,
    mean: bool,
    spread: Spread | None,
) -> tuple[Any, Any, Params]:
    """Loss, its terms and the gradients of the trainable part.

    Args:
      loss: of one micro-batch; on a mesh, a device's share of it.
      part: what is differentiated.
      params: all parameters.
      batch: the global batch.
      key: of the step.
      step: its number.
      draw: the random numbers of a micro-batch.
      micro_batches: pieces into which the batch is cut, in order.
      mean: whether the pieces' gradients are averaged; else they are summed. Losses are averaged.
      spread: how parameters lie on a mesh; None on one device.

    Raises:
      ValueError: the batch is no multiple of the micro-batches.
    """
    pieces = _pieces(batch, micro_batches)
    # One piece has the step's own key, so that a run without micro-batches draws from it.
    keys = key[None] if micro_batches == 1 else jax.random.split(key, micro_batches)
    draws = jax.vmap(draw)(keys, pieces) if micro_batches > 1 else _lead(draw(key, batch))

    def accumulated(
        part: Any, params: Any, pieces: Any, draws: Any, step: Any, place: Place
    ) -> Any:
        gradient = jax.value_and_grad(loss, has_aux=True)

        def one(piece: Any, its_draws: Any) -> Any:
            return gradient(part, params, piece, its_draws, step, place)

        if micro_batches == 1:
            return one(*jax.tree.map(lambda x: x[0], (pieces, draws)))
        first = jax.eval_shape(one, *jax.tree.map(lambda x: x[0], (pieces, draws)))
        zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)

        def body(total: Any, piece: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, one(*piece)), None

        (losses, grads), _ = jax.lax.scan(body, zero, (pieces, draws))
        losses = jax.tree.map(lambda x: x / micro_batches, losses)
        if mean:
            grads = jax.tree.map(lambda x: x / micro_batches, grads)
        return losses, grads

    if spread is None:
        (total, terms), grads = accumulated(part, params, pieces, draws, step, Place())
        return total, terms, grads
    (total, terms), grads = _spread(accumulated, part, params, pieces, draws, step, spread)
    return total, terms, grads


def _spread(
    accumulated: Any, part: Any, params: Any, pieces: Any, draws: Any, step: Any, spread: Spread
) -> Any:
    """`accumulated` on every device for its rows and its parts of the parameters."""
    specs = jax.tree.map(lambda spec: _only(spec, spread.manual), spread.specs, is_leaf=_is_spec)
    part_specs = {name: specs[name] for name in part}
    by_row = P(None, BATCH_AXES)
    rows = NamedSharding(spread.mesh, by_row)
    pieces, draws = jax.lax.with_sharding_constraint((pieces, draws), rows)

    def on_device(part: Any, params: Any, pieces: Any, draws: Any, step: Any) -> Any:
        place = Place(Rows(BATCH_AXES), spread)
        losses, grads = accumulated(part, params, pieces, draws, step, place)

        def summed(grad: Any, spec: P) -> Any:
            over = BATCH_AXES if dimension(spec) is None else tuple(set(BATCH_AXES) - {AXIS})
            return jax.lax.psum(grad, over)

        grads = jax.tree.map(summed, grads, part_specs)
        return jax.lax.psum(losses, BATCH_AXES), grads

    return jax.shard_map(
        on_device,
        mesh=spread.mesh,
        in_specs=(part_specs, specs, by_row, by_row, P()),
        out_specs=(P(), part_specs),
        axis_names=spread.manual,
        check_vma=False,
    )(part, params, pieces, draws, step)


def _pieces(batch: Batch, count: int) -> Batch:
    size = batch.caption_ids.shape[0]
    if size % count:
        raise ValueError(f"micro_batches {count} does not divide the batch {size}")
    return jax.tree.map(lambda x: x.reshape(count, size // count, *x.shape[1:]), batch)


def _lead(tree: Any) -> Any:
    return jax.tree.map(lambda x: x[None], tree)


def _only(spec: P, axes: frozenset[str]) -> P:
    """The spec without the axes that are left to the compiler."""

    def kept(entry: Any) -> Any:
        names = (entry,) if isinstance(entry, str) else entry or ()
        names = tuple(name for name in names if name in axes)
        return names or None

    return P(*(kept(entry) for entry in spec))


def _is_spec(node: Any) -> bool:
    return isinstance(node, P)


def stacked_path(tree: Mapping[str, Any]) -> tuple[str, ...]:
    """Where a network keeps its stacked layers: `blocks`, or `blocks/layers`."""
    return (STACKED, "layers") if "layers" in tree.get(STACKED, {}) else (STACKED,)
