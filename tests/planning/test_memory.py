"""Whether a program fits is the compiler's word, and its message is read to the number."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from unialign_jax.planning import hlo, memory
from unialign_jax.planning.hardware import CHIPS, GIB

SHORT = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
    "(103.64G) exceeds available HBM (15.75G)."
)
LONG = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. \
Ran out of memory in memory space hbm. Used 17.76G of 15.75G hbm. Exceeded hbm capacity by 2.01G.

Total hbm usage >= 18.01G:
    reserved        258.00M
    program          17.50G
    arguments       430.20M

  Largest program allocations in hbm:

  1. Size: 1.46G
     Operator: op_name="jit(step)/while/body/dot_general" source_file="step.py"
     Shape: bf16[50,1280,6144]{2,1,0:T(8,128)(2,1)}
     Unpadded size: 1.46G
     XLA label: fusion.1 = fusion(a), kind=kOutput
     Allocation type: HLO temp
     ==========================

  2. Size: 384.00M
     Operator: op_name="jit(step)/while/body/add"
     Shape: f32[50,1280,1536]{2,1,0:T(8,128)}
     Allocation type: HLO temp
"""


def test_the_message_about_temporaries_is_read():
    found = memory.of_failure(SHORT, 2 * GIB, CHIPS["v5e"])
    assert not found.fits
    assert found.gib() == {
        "limit": 15.75,
        "arguments": 2.0,
        "temporaries": 103.64,
        "total": 105.64,
    }


def test_the_message_with_allocations_is_read():
    found = memory.of_failure(LONG, 0.42 * GIB, CHIPS["v5e"])
    assert found.gib()["total"] == 17.76
    assert found.gib()["limit"] == 15.75
    assert [(round(size / GIB, 3), array, where) for size, array, where in found.largest] == [
        (1.46, "bf16[50,1280,6144]", "jit(step)/while/body/dot_general"),
        (0.375, "f32[50,1280,1536]", "jit(step)/while/body/add"),
    ]


@pytest.mark.parametrize("message", [SHORT, LONG])
def test_a_lack_of_memory_is_told_from_other_errors(message):
    assert memory.is_out_of_memory(message)
    assert not memory.is_out_of_memory("INTERNAL: Mosaic failed to compile")


def test_what_fits_is_judged_by_the_peak_and_not_by_all_temporaries():
    module = hlo.parse(
        "ENTRY %main (a: f32[4096,4096]) -> f32[4096,4096] {\n"
        "  %a = f32[4096,4096]{1,0} parameter(0)\n"
        '  ROOT %b = f32[4096,4096]{1,0} fusion(%a), kind=kLoop, metadata={op_name="jit(f)/mul"}\n'
        "}\n"
    )
    sizes = {"arguments": 1.0 * GIB, "temporaries": 21.6 * GIB, "peak": 14.67 * GIB}
    found = memory.of_compiled(sizes, module, CHIPS["v5e"])
    assert found.fits and found.gib()["total"] == 14.67
    assert found.gib()["temporaries"] == 13.67
    assert found.largest == [(4096.0 * 4096 * 4, "f32[4096,4096]", "jit(f)/mul")]


def test_where_the_compiler_names_no_buffer_the_traced_program_does():
    shape = jax.ShapeDtypeStruct((64, 128), jnp.bfloat16)
    traced = jax.make_jaxpr(lambda x: x[:, :, None] * x[:, None, :])(shape)
    size, name, _ = memory.traced_buffers(traced, 4)[0]
    assert (size, name) == (64 * 128 * 128 * 2 / 4, "bfloat16[64,128,128] / 4")
