"""A second implementation in PyTorch, for tests only.

Written from the description in the goldens' README, with the reference's parameter names, and
proven on the goldens (tests/test_torch_peer.py). It stands in for the reference at sizes for which
no goldens were recorded. A test module that imports it is skipped where torch is not installed.
"""

import pytest

torch = pytest.importorskip("torch")
# The matrices are tiny: on a busy machine, threads would only wait for each other.
torch.set_num_threads(1)
