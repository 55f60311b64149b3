"""Compilations kept on disk: JAX's own cache does not serve programs of other machines.

A compilation is found by its lowered text, topology, effort and the versions of JAX and libtpu.
What is kept is what the compiler said, so a change to how that is read costs no compilation.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import importlib.metadata
import json
import os
import time
from pathlib import Path
from typing import Any

import jax

from unialign_jax.planning.memory import is_out_of_memory

SWITCH = "UNIALIGN_PLAN_CACHE"


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What came out of the compiler.

    Attributes:
        text: of the scheduled program; "" where it failed.
        memory: bytes: `arguments`, `temporaries`, `peak`.
        error: of the compiler, where the program needs too much memory.
        seconds: that compiling took.
    """

    text: str
    memory: dict[str, float]
    error: str
    seconds: float


def directory() -> Path | None:
    """Where compilations are kept; None with `UNIALIGN_PLAN_CACHE=off`."""
    choice = os.environ.get(SWITCH, "")
    if choice.lower() in ("off", "0", "no", "none", "false"):
        return None
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(choice).expanduser() if choice else home / "unialign_jax" / "plans"


def key(lowered: str, topology: str, slices: int, effort: float) -> str:
    """Names a compilation."""
    versions = f"{jax.__version__} {_version('jaxlib')} {_version('libtpu')}"
    parts = (lowered, topology, str(slices), str(effort), versions)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def load(name: str) -> Compiled | None:
    """The compilation of that key, if it is there and whole."""
    folder = directory()
    if folder is None or not (folder / f"{name}.json.gz").is_file():
        return None
    try:
        with gzip.open(folder / f"{name}.json.gz", "rt") as file:
            return Compiled(**json.load(file))
    except (OSError, EOFError, ValueError, TypeError):
        # Cut short, or written by another version: compiled anew and replaced.
        return None


def save(name: str, compiled: Compiled) -> None:
    """Keeps a compilation; a reader never sees half of it."""
    folder = directory()
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{name}.{os.getpid()}.partial"
    with gzip.open(partial, "wt", compresslevel=3) as file:
        json.dump(dataclasses.asdict(compiled), file)
    os.replace(partial, folder / f"{name}.json.gz")


def compile_lowered(lowered: Any, topology: str, slices: int, effort: float) -> Compiled:
    """Compiles, or finds what compiling gave before. A lack of memory is a result, not an error."""
    name = key(lowered.as_text(), topology, slices, effort)
    known = load(name)
    if known is not None:
        return known
    begin = time.monotonic()
    settings: Any = jax.config
    before = settings.jax_exec_time_optimization_effort
    jax.config.update("jax_exec_time_optimization_effort", effort)
    try:
        compiled = lowered.compile()
        sizes = compiled.memory_analysis()
        memory = {
            "arguments": float(sizes.argument_size_in_bytes),
            "temporaries": float(sizes.temp_size_in_bytes),
            "peak": float(getattr(sizes, "peak_memory_in_bytes", 0)),
        }
        done = Compiled(compiled.as_text(), memory, "", time.monotonic() - begin)
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(str(error)):
            raise
        done = Compiled("", {}, str(error), time.monotonic() - begin)
    finally:
        jax.config.update("jax_exec_time_optimization_effort", before)
    save(name, done)
    return done


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "none"
