"""Joining the other processes of a job: one process per host, all of them run the same program."""

from __future__ import annotations

import os
from collections.abc import Mapping

import jax

from unialign_jax.errors import UsageError

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def join(environ: Mapping[str, str] | None = None) -> bool:
    """Connects this process to its job, where the environment names a coordinator.

    To be called before anything asks for devices. `JAX_COORDINATOR_ADDRESS` is host:port of
    process 0. `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` are needed where JAX cannot ask the cluster
    (SLURM, GKE, Cloud TPU) for them. Without an address the process works alone.

    Args:
        environ: in place of the process's environment.

    Returns:
        Whether the process has joined others.

    Raises:
        UsageError: a coordinate that is no number, or an index outside the job.
    """
    environ = os.environ if environ is None else environ
    address = environ.get(ADDRESS)
    if not address:
        return False
    count, index = _number(environ, COUNT), _number(environ, INDEX)
    if count is not None and index is not None and not 0 <= index < count:
        raise UsageError(f"{INDEX}={index} is outside a job of {COUNT}={count}; it counts from 0.")
    if count == 1:
        return False
    jax.distributed.initialize(address, num_processes=count, process_id=index)
    return True


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name)
    if text is None:
        return None
    if not text.isdecimal():
        raise UsageError(f"{name}={text!r} is not a number.")
    return int(text)
