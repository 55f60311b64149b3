"""Several processes of one job, started as launch/local.sh does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from unialign_jax.errors import UsageError
from unialign_jax.parallel import processes

LAUNCH = Path(__file__).resolve().parents[2] / "launch" / "local.sh"

SUM_OVER_ALL_DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from unialign_jax.parallel import mesh, processes

assert processes.join()
devices = mesh.make_mesh(mesh.MeshConfig())
rows = NamedSharding(devices, P("data"))
local = np.arange(2.0) + 2 * jax.process_index()
total = jax.jit(jnp.sum, out_shardings=NamedSharding(devices, P()))(
    jax.make_array_from_process_local_data(rows, local)
)
print("total", float(total), "of", jax.process_count(), "with", jax.device_count())
"""


def launch(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    return subprocess.run(
        [str(LAUNCH), *command],
        env={"PATH": path, "PYTHONPATH": str(LAUNCH.parents[1]), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_two_processes_reduce_over_the_devices_of_both():
    done = launch("2", sys.executable, "-c", SUM_OVER_ALL_DEVICES, DEVICES="2")
    assert done.returncode == 0, done.stdout + done.stderr
    for index in (0, 1):
        assert f"[{index}] total 6.0 of 2 with 4" in done.stdout


def test_the_launcher_ends_the_others_when_one_fails():
    script = 'if [ "$JAX_PROCESS_ID" = 1 ]; then exit 3; fi; sleep 60'
    assert launch("2", "bash", "-c", script, GRACE="1").returncode == 3


def test_the_launcher_explains_itself():
    done = launch()
    assert done.returncode == 2
    assert "launch/local.sh 2" in done.stderr


def test_a_process_without_a_coordinator_works_alone():
    assert processes.join({}) is False
    alone = {"JAX_COORDINATOR_ADDRESS": "h:1", "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}
    assert processes.join(alone) is False


@pytest.mark.parametrize(("count", "index"), [("2", "2"), ("two", "0"), ("2", "-1")])
def test_wrong_coordinates_are_a_wrong_call(count, index):
    environ = {"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": count}
    with pytest.raises(UsageError, match="JAX_"):
        processes.join({**environ, "JAX_PROCESS_ID": index})
