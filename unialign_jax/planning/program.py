"""One program of a stage on one topology: traced, compiled, read."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import jax

from unialign_jax.parallel.mesh import AXES
from unialign_jax.planning import bounds, collectives, flops, hlo, memory, store, work
from unialign_jax.planning.batch import (
    Case,
    abstract_batch,
    argument_bytes,
    setup_for,
    trainable_part,
    with_values,
)
from unialign_jax.planning.bounds import StepFlops
from unialign_jax.planning.guess import guess
from unialign_jax.planning.topology import Topology
from unialign_jax.training import programs
from unialign_jax.training.setup import Setup

QUICK, FULL = -1.0, 0.0


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is known about a program before anything is rented.

    Attributes:
        case: which program.
        topology: for what.
        setup: the parts of the run, abstract.
        memory: whether it fits.
        flops: per device and step.
        collectives: per device; empty where it did not compile.
        work: XLA's own estimates; None where it did not compile.
        roofline: see `bounds.roofline`.
        estimate: see `bounds.estimate`; empty with quick compiles, whose cycles mean nothing.
        estimated: nothing was compiled: every figure but FLOPs and arguments is a guess.
        quick: compiled without effort; memory and collectives hold, cycles do not.
        seconds: of tracing and compiling (when it was compiled).
    """

    case: Case
    topology: Topology
    setup: Setup
    memory: memory.Memory
    flops: StepFlops
    collectives: list[collectives.Collective]
    work: work.Work | None
    roofline: dict[str, Any]
    estimate: dict[str, Any]
    estimated: bool
    quick: bool
    seconds: float

    @property
    def mesh(self) -> dict[str, int]:
        """Axis -> devices."""
        return {axis: int(self.setup.mesh.shape[axis]) for axis in AXES}

    @property
    def per_chip_batch(self) -> float:
        """Samples of a step per device."""
        return self.setup.train.global_batch / self.topology.devices


def plan(
    config: Mapping[str, Any],
    topology: Topology,
    case: Case,
    devices: list[Any],
    *,
    quick: bool = False,
    attention_efficiency: float = bounds.ATTENTION_EFFICIENCY,
) -> Plan:
    """Traces and compiles one program, and reads what the compiler made.

    Args:
        config: resolved, `train.global_batch` samples in a step.
        topology: what to plan for.
        case: the task.
        devices: of `topology.devices`, or stand-ins where there is no compiler.
        quick: a third of the compile time, no estimate of the step time.
        attention_efficiency: see `bounds.ATTENTION_EFFICIENCY`.

    Raises:
        UserError: a config that does not fit itself or the devices.
    """
    begin = time.monotonic()
    if not topology.compiles and config["model"].get("attention", "auto") == "auto":
        # Stand-ins are CPUs; what those would choose says nothing about the hardware planned for.
        config = with_values(config, {"model.attention": "xla"})
    setup = setup_for(config, devices)
    batch = abstract_batch(setup, case)
    traced = programs.trace(setup, case.task, batch)
    counted, per_step = _flops(config, setup, case, devices, traced)
    arguments = argument_bytes((setup.abstract, batch))
    chip = topology.chip
    if not topology.compiles:
        memory_, roof, estimate = guess(setup, counted, per_step, arguments, traced.jaxpr, chip)
        seconds = time.monotonic() - begin
        return Plan(
            *(case, topology, setup, memory_, per_step, [], None, roof, estimate, True, quick),
            seconds,
        )
    effort = QUICK if quick else FULL
    done = store.compile_lowered(traced.lower(), topology.name, topology.slices, effort)
    seconds = time.monotonic() - begin
    if done.error:
        failed = memory.of_failure(done.error, arguments, chip)
        if not failed.largest:
            named = memory.traced_buffers(traced.jaxpr, setup.mesh.size)
            failed = dataclasses.replace(failed, largest=named)
        return Plan(
            *(case, topology, setup, failed, per_step, [], None, {}, {}, False, quick), seconds
        )
    module = hlo.parse(done.text)
    found = collectives.find(module, dict(setup.mesh.shape))
    measured = work.measure(module)
    dcn = dcn_bytes(setup, topology.slices)
    moved = sum(one.executions * one.bytes for one in found)
    roof = bounds.roofline(per_step, measured.hbm_bytes, moved, dcn, chip)
    estimate = (
        {} if quick else bounds.estimate(per_step, measured, found, dcn, chip, attention_efficiency)
    )
    fits = memory.of_compiled(done.memory, module, chip)
    return Plan(
        *(case, topology, setup, fits, per_step, found, measured, roof, estimate, False, quick),
        max(seconds, done.seconds),
    )


def _flops(
    config: Mapping[str, Any], setup: Setup, case: Case, devices: list[Any], traced: Any
) -> tuple[flops.Count, StepFlops]:
    """FLOPs of the step as it is, and per device with recomputation told apart.

    The same step without rematerialisation is traced beside it; what the real one has more, and
    what attention kernels form again, is repetition.
    """
    real = flops.count(traced.jaxpr)
    plain = real
    if setup.model.config.remat != "none":
        bare = setup_for(with_values(config, {"model.remat": "none"}), devices)
        plain = flops.count(programs.trace(bare, case.task, abstract_batch(bare, case)).jaxpr)
    update = flops.count(_update_jaxpr(setup)).total
    encoder = 0.0 if setup.step.train_text_encoder else plain.text_encoder
    model = plain.total - plain.repeated - encoder - update
    n = setup.mesh.size
    return real, StepFlops(
        model=model / n,
        text_encoder=encoder / n,
        optimizer=update / n,
        repeated=(real.total - model - encoder - update) / n,
        attention=real.attention / n,
        attention_depth=real.attention_depth,
    )


def _update_jaxpr(setup: Setup) -> Any:
    """The optimiser's update alone; Muon has matrix products of its own."""
    part = trainable_part(setup)
    return jax.make_jaxpr(setup.tx.update)(part, setup.abstract.opt_state, part)


def dcn_bytes(setup: Setup, slices: int) -> float:
    """Bytes per device between slices: the float32 gradient shards, reduced once per step.

    By arithmetic: the compiled text does not show what crosses slices as a collective.
    """
    if slices < 2:
        return 0.0
    gradients = argument_bytes(trainable_part(setup))
    return 2 * gradients * (slices - 1) / slices
