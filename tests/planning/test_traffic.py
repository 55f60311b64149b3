"""Bytes of main memory by hand: a stack of layers that is written or read a slice at a time."""

from __future__ import annotations

import pytest

from unialign_jax.planning import hlo
from unialign_jax.planning.traffic import hbm_bytes

STACK, SLICE, COUNTER = 24 * 128 * 256 * 2, 128 * 256 * 2, 4

# The forms in which TPU compilers write the layer of a scan: `plain` as it is, `layout` after a
# change of layout in place (v7x), `nested` inside a fusion of the fusion, `both` read and written,
# `whole` reads all of it.
TEXT = """HloModule step, is_scheduled=true

%layout_only (l0: bf16[24,128,256]) -> bf16[24,128,256] {
  %l0 = bf16[24,128,256]{2,1,0:T(16,128)(2,1)} parameter(0)
  ROOT %copy.1 = bf16[24,128,256]{2,1,0:T(8,128)(2,1)} copy(%l0)
}

%slice_inside (s0: bf16[24,128,256], s1: s32[]) -> bf16[1,128,256] {
  %s0 = bf16[24,128,256]{2,1,0} parameter(0)
  %s1 = s32[] parameter(1)
  ROOT %dynamic-slice.1 = bf16[1,128,256]{2,1,0} dynamic-slice(%s0, %s1, %s1, %s1), \
dynamic_slice_sizes={1,128,256}
}

%plain (a0: bf16[24,128,256], a1: bf16[1,128,256], a2: s32[]) -> bf16[24,128,256] {
  %a0 = bf16[24,128,256]{2,1,0} parameter(0)
  %a1 = bf16[1,128,256]{2,1,0} parameter(1)
  %a2 = s32[] parameter(2)
  ROOT %dynamic-update-slice.1 = bf16[24,128,256]{2,1,0} dynamic-update-slice(%a0, %a1, %a2, \
%a2, %a2)
}

%layout (b0: bf16[24,128,256], b1: bf16[128,256], b2: s32[]) -> bf16[24,128,256] {
  %b0 = bf16[24,128,256]{2,1,0:T(16,128)(2,1)} parameter(0)
  %fusion.9 = bf16[24,128,256]{2,1,0:T(8,128)(2,1)} fusion(%b0), kind=kLoop, \
output_to_operand_aliasing={{}: (0, {})}, calls=%layout_only
  %b1 = bf16[128,256]{1,0} parameter(1)
  %bitcast.1 = bf16[1,128,256]{2,1,0} bitcast(%b1)
  %b2 = s32[] parameter(2)
  ROOT %dynamic-update-slice.2 = bf16[24,128,256]{2,1,0} dynamic-update-slice(%fusion.9, \
%bitcast.1, %b2, %b2, %b2)
}

%nested (c0: bf16[24,128,256], c1: s32[]) -> bf16[1,128,256] {
  %c0 = bf16[24,128,256]{2,1,0} parameter(0)
  %c1 = s32[] parameter(1)
  %fusion.8 = bf16[1,128,256]{2,1,0} fusion(%c0, %c1), kind=kLoop, calls=%slice_inside
  ROOT %negate.1 = bf16[1,128,256]{2,1,0} negate(%fusion.8)
}

%whole (d0: bf16[24,128,256], d1: s32[]) -> bf16[24,128,256] {
  %d0 = bf16[24,128,256]{2,1,0} parameter(0)
  %d1 = s32[] parameter(1)
  %fusion.7 = bf16[1,128,256]{2,1,0} fusion(%d0, %d1), kind=kLoop, calls=%slice_inside
  %broadcast.1 = bf16[24,128,256]{2,1,0} broadcast(%fusion.7), dimensions={0,1,2}
  ROOT %add.1 = bf16[24,128,256]{2,1,0} add(%d0, %broadcast.1)
}

%turned (e0: bf16[24,128,256]) -> bf16[24,32768] {
  %e0 = bf16[24,128,256]{2,1,0} parameter(0)
  ROOT %bitcast.2 = bf16[24,32768]{1,0} bitcast(%e0)
}

%both (f0: bf16[24,128,256], f1: bf16[1,128,256], f2: s32[]) -> bf16[24,128,256] {
  %f0 = bf16[24,128,256]{2,1,0} parameter(0)
  %f1 = bf16[1,128,256]{2,1,0} parameter(1)
  %f2 = s32[] parameter(2)
  %dynamic-slice.2 = bf16[1,128,256]{2,1,0} dynamic-slice(%f0, %f2, %f2, %f2), \
dynamic_slice_sizes={1,128,256}
  %add.2 = bf16[1,128,256]{2,1,0} add(%dynamic-slice.2, %f1)
  ROOT %dynamic-update-slice.3 = bf16[24,128,256]{2,1,0} dynamic-update-slice(%f0, %add.2, %f2, \
%f2, %f2)
}

ENTRY %main (stack: bf16[24,128,256], layer: bf16[1,128,256], flat: bf16[128,256], i: s32[]) \
-> bf16[24,32768] {
  %stack = bf16[24,128,256]{2,1,0} parameter(0)
  %layer = bf16[1,128,256]{2,1,0} parameter(1)
  %flat = bf16[128,256]{1,0} parameter(2)
  %i = s32[] parameter(3)
  %fusion.plain = bf16[24,128,256]{2,1,0} fusion(%stack, %layer, %i), kind=kLoop, calls=%plain
  %fusion.layout = bf16[24,128,256]{2,1,0} fusion(%fusion.plain, %flat, %i), kind=kLoop, \
calls=%layout
  %fusion.nested = bf16[1,128,256]{2,1,0} fusion(%fusion.layout, %i), kind=kLoop, calls=%nested
  %fusion.both = bf16[24,128,256]{2,1,0} fusion(%stack, %layer, %i), kind=kLoop, calls=%both
  %fusion.whole = bf16[24,128,256]{2,1,0} fusion(%fusion.layout, %i), kind=kLoop, calls=%whole
  ROOT %fusion.turned = bf16[24,32768]{1,0} fusion(%fusion.whole), kind=kLoop, calls=%turned
}
"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fusion.plain", SLICE + SLICE + COUNTER),
        ("fusion.layout", SLICE + SLICE + COUNTER),
        ("fusion.nested", SLICE + SLICE + COUNTER),
        ("fusion.both", SLICE + SLICE + SLICE + COUNTER),
        ("fusion.whole", STACK + STACK + COUNTER),
        ("fusion.turned", STACK + STACK),
    ],
)
def test_what_is_sliced_inside_a_fusion_moves_the_slice(name, expected):
    module = hlo.parse(TEXT)
    assert hbm_bytes(module, module.by_name["main"][name], "main") == expected
