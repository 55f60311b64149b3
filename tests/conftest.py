"""Every test sees eight CPU devices, so that meshes and shardings can be tried anywhere."""

from __future__ import annotations

import os
from importlib import metadata

# Before the first import of jax. JAX_PLATFORMS=cuda pytest ... tries a test on an accelerator.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of a test is compilation. JAX_DISABLE_MOST_OPTIMIZATIONS=0 asks for the usual effort.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# The older code generator for CPUs compiles in a third to a half of the time. XLA ends the process
# at a flag that it does not know: only with the version that this was tried with.
if metadata.version("jaxlib").startswith("0.10."):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# A test that reaches for the network fails at once instead of waiting for it.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# tests compare a caught error's text: a developer's own switch must not turn it into a traceback.
os.environ.pop("UNIALIGN_TRACEBACK", None)

import hypothesis
import jax
import pytest
from absl import flags

jax.config.update("jax_num_cpu_devices", 8)
flags.FLAGS.mark_as_parsed()
# The same examples every time: one commit has one verdict. HYPOTHESIS_PROFILE=explore looks for new
# ones; what it finds is to be mended and kept with @example.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


@pytest.fixture(scope="session")
def repository(pytestconfig: pytest.Config):
    """The checkout's root folder."""
    return pytestconfig.rootpath
