"""The compiled text is read as it was checked by hand on small pieces of real programs."""

from __future__ import annotations

import pytest

from unialign_jax.planning import collectives, hlo, work
from unialign_jax.planning.groups import axes_of, first_group
from unialign_jax.planning.traffic import hbm_bytes

MESH = {"data": 2, "fsdp": 4, "context": 1, "tensor": 1}

# Two loops' worth of the forms that libtpu prints, shortened. Loop: 24 rounds of
#   - a gather of bf16[512,256] that starts in one fusion, goes on in a second, ends in a third
#   - a reduce-scatter of f32[64,128], which XLA writes as an all-reduce in a computation of its own
#   - a plain all-reduce over data
#   - a matmul fusion of 1000 cycles and an element-wise one of 200
# and beside it, once, a permute in flight, a fusion without an estimate and a kernel.
PROGRAM = """\
HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %add.0 = f32[] add(%x, %y)
}

%start (p0: bf16[128,256]) -> (bf16[128,256], bf16[512,256], s32[2]) {
  %p0 = bf16[128,256]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.1 = bf16[512,256]{1,0:T(8,128)(2,1)S(1)} all-gather(%p0), channel_id=7, \
replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}
  ROOT %custom-call.1 = (bf16[128,256]{1,0}, bf16[512,256]{1,0}, s32[2]{0:S(4)}) \
custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.2 (q0: f32[64,64], q1: bf16[128,256]) -> (f32[64,64], bf16[512,256]) {
  %q0 = f32[64,64]{1,0} parameter(0)
  %q1 = bf16[128,256]{1,0} parameter(1)
  %all-gather.2 = bf16[512,256]{1,0} all-gather(%q1), channel_id=7, \
replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}
  %convolution.1 = f32[64,64]{1,0} convolution(%q0, %q0), dim_labels=bf_io->bf
  ROOT %tuple.2 = (f32[64,64]{1,0}, bf16[512,256]{1,0}) tuple(%convolution.1, %all-gather.2)
}

%finish (r0: bf16[512,256]) -> bf16[512,256] {
  %r0 = bf16[512,256]{1,0} parameter(0)
  %all-gather.3 = bf16[512,256]{1,0} all-gather(%r0), channel_id=7, \
replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}
  ROOT %custom-call.2 = bf16[512,256]{1,0} custom-call(%r0, %all-gather.3), \
custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.1 (s0: f32[64,128]) -> f32[16,128] {
  %s0 = f32[64,128]{1,0} parameter(0)
  %all-reduce.1 = f32[64,128]{1,0} all-reduce(%s0), channel_id=9, \
replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %slice.1 = f32[16,128]{1,0} dynamic-slice(%all-reduce.1), dynamic_slice_sizes={16,128}
}

%elementwise (t0: f32[24,64,128], t1: s32[]) -> f32[64,128] {
  %t0 = f32[24,64,128]{2,1,0} parameter(0)
  %t1 = s32[] parameter(1)
  %dynamic-slice.1 = f32[1,64,128]{2,1,0} dynamic-slice(%t0, %t1), dynamic_slice_sizes={1,64,128}
  ROOT %multiply.1 = f32[64,128]{1,0} multiply(%dynamic-slice.1, %dynamic-slice.1)
}

%body (b: (s32[], f32[24,64,128])) -> (s32[], f32[24,64,128]) {
  %b = (s32[]{:T(128)}, f32[24,64,128]{2,1,0}) parameter(0)
  %w = bf16[128,256]{1,0} get-tuple-element(%b), index=0
  %i = s32[] get-tuple-element(%b), index=1
  %stack = f32[24,64,128]{2,1,0} get-tuple-element(%b), index=2
  %x = f32[64,64]{1,0:S(1)} get-tuple-element(%b), index=3
  %fusion.1 = (bf16[128,256]{1,0}, bf16[512,256]{1,0}, s32[2]{0:S(4)}) fusion(%w), kind=kCustom, \
calls=%start
  %fusion.2 = (f32[64,64]{1,0:S(1)}, bf16[512,256]{1,0:S(1)}) fusion(%x, %w), kind=kOutput, \
calls=%async_collective_fusion.2, metadata={op_name="jit(step)/while/body/dot_general"}, \
backend_config={"window_config":{"estimated_cycles":"1000"}}
  %fusion.3 = bf16[512,256]{1,0:S(1)} fusion(%fusion.2), kind=kCustom, calls=%finish
  %fusion.4 = f32[64,128]{1,0} fusion(%stack, %i), kind=kLoop, calls=%elementwise, \
metadata={op_name="jit(step)/while/body/mul"}, backend_config={"estimated_cycles":"200"}
  %fusion.5 = f32[16,128]{1,0} fusion(%fusion.4), kind=kCustom, calls=%all-reduce-scatter.1
  %all-reduce.2 = f32[16,128]{1,0} all-reduce(%fusion.5), channel_id=9, \
replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add
  ROOT %tuple.9 = (s32[]{:T(128)}, f32[24,64,128]{2,1,0}) tuple(%i, %stack)
}

%condition (c: (s32[], f32[24,64,128])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(24)
  %c = (s32[]{:T(128)}, f32[24,64,128]{2,1,0}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%c), index=0
  ROOT %lt.1 = pred[]{:T(512)} compare(%counter, %constant.1), direction=LT
}

ENTRY %main.1 (a: f32[24,64,128]) -> f32[24,64,128] {
  %a = f32[24,64,128]{2,1,0} parameter(0)
  %while.1 = (s32[]{:T(128)}, f32[24,64,128]{2,1,0}) while(%a), condition=%condition, body=%body
  %g = f32[8,128]{1,0} get-tuple-element(%while.1), index=1
  %collective-permute-start.1 = (f32[8,128]{1,0}, f32[8,128]{1,0}, u32[]{:S(2)}) \
collective-permute-start(%g), channel_id=3, source_target_pairs={{0,4},{4,0}}
  %collective-permute-done.1 = f32[8,128]{1,0} collective-permute-done(%collective-permute-start.1)
  %fusion.6 = f32[8,128]{1,0} fusion(%g), kind=kLoop, calls=%add, \
backend_config={"estimated_cycles":"9223372036854775807"}
  %custom-call.9 = f32[8,128]{1,0} custom-call(%g), custom_call_target="tpu_custom_call", \
metadata={op_name="jit(step)/splash_mha_fwd"}, backend_config={"body":"
}
%no_computation {
"}
  ROOT %out = f32[24,64,128]{2,1,0} get-tuple-element(%while.1), index=1
}
"""


@pytest.fixture(scope="module")
def module():
    return hlo.parse(PROGRAM)


def test_a_loop_runs_as_often_as_its_condition_says(module):
    times = {line.name: times for line, times, _ in module.scheduled()}
    assert times["fusion.2"] == 24
    assert times["while.1"] == times["custom-call.9"] == 1


def test_a_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.parse("HloModule nothing")


def test_types_are_read_with_their_memory():
    found = hlo.arrays("(f32[2,3]{1,0:T(8,128)S(1)}, /*index=1*/bf16[8]{0}, s32[], token[])")
    assert [(str(a), a.bytes, a.in_hbm) for a in found] == [
        ("f32[2,3]", 24, False),
        ("bf16[8]", 16, True),
        ("s32[]", 4, True),
    ]


def test_collectives_are_counted_once_with_loops_multiplied(module):
    found = {one.kind: one for one in collectives.find(module, MESH)}
    assert set(found) == {"all-gather", "reduce-scatter", "all-reduce", "collective-permute"}

    gather = found["all-gather"]
    assert (gather.executions, gather.group, gather.axes) == (24, 4, "fsdp")
    assert not gather.synchronous
    assert gather.bytes == 512 * 256 * 2 * 3 / 4

    scatter = found["reduce-scatter"]
    assert (scatter.executions, scatter.axes, scatter.synchronous) == (24, "fsdp", True)
    assert scatter.bytes == 64 * 128 * 4 * 3 / 4

    reduce = found["all-reduce"]
    assert (reduce.executions, reduce.axes, reduce.synchronous) == (24, "data", True)
    assert reduce.bytes == 2 * 16 * 128 * 4 / 2

    permute = found["collective-permute"]
    assert (permute.executions, permute.axes, permute.synchronous) == (1, "data", False)
    assert permute.bytes == 8 * 128 * 4


def test_the_summary_adds_bytes_per_step(module):
    found = collectives.find(module, MESH)
    assert collectives.summary(found)["all-gather"] == {"count": 24, "bytes": 24 * 196608.0}
    rows = collectives.by_axis(found)
    assert rows[0]["kind"] == "all-gather" and rows[0]["axes"] == "fsdp"


def test_cycles_go_to_their_category_and_no_idea_counts_nothing(module):
    measured = work.measure(module)
    assert measured.cycles["matmul"] == 24 * 1000
    assert measured.cycles["elementwise"] == 24 * 200
    assert sum(measured.cycles.values()) == 24 * 1200
    assert measured.region_cycles == {"body": 24 * 1200.0}
    assert measured.kernels == {"splash_mha_fwd": 1}


def test_a_slice_of_a_stack_in_a_fusion_moves_the_slice_only(module):
    line = module.by_name["body"]["fusion.4"]
    index = 4  # the loop's counter
    assert hbm_bytes(module, line, "body") == 64 * 128 * 4 + index + 64 * 128 * 4


@pytest.mark.parametrize(
    ("text", "group", "axes"),
    [
        ("replica_groups=[2,4]<=[8]", [0, 1, 2, 3], "fsdp"),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [0, 4], "data"),
        ("replica_groups=[1,8]<=[8]", list(range(8)), "data+fsdp"),
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", [0, 4], "data"),
        ("replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0'}", list(range(8)), "data+fsdp"),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}", [0, 4], "data"),
        (
            "replica_groups=mesh['axis_0'=1,'axis_1'=4,'axis_2'=2], "
            "device_ids=([2,4]T(1,0)) {'axis_1'}",
            [0, 1, 2, 3],
            "fsdp",
        ),
        ("replica_groups=mesh['axis_0'=8] {'axis_0':(1)2}", [0, 4], "data"),
        ("replica_groups=mesh['axis_0'=8] {'axis_0':(2)4}", [0, 1, 2, 3], "fsdp"),
        ("to_apply=%add", list(range(8)), "data+fsdp"),
    ],
)
def test_groups_in_every_form_are_mesh_axes(text, group, axes):
    assert first_group(text, 8) == group
    assert axes_of(group, MESH) == axes
