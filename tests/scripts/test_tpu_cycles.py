"""Cycles of a compiled program, loops counted as often as they run: of a text in the TPU compiler's form."""

from __future__ import annotations

import pytest

from scripts import tpu_cycles
from scripts.tpu_compile_check import out_of_memory

PROGRAM = """HloModule jit_step, is_scheduled=true

%fused_computation.1 (param_0: f32[8,128]) -> f32[8,128] {
  %param_0 = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %exponential.1 = f32[8,128]{1,0:T(8,128)} exponential(%param_0)
}

%body.1 (arg: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %arg = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %fusion.1 = f32[8,128]{1,0:T(8,128)} fusion(%gte.1), kind=kLoop, calls=%fused_computation.1, metadata={op_name="jit(step)/while/body/exp"}, backend_config={"window_config":{"estimated_cycles":"100"}}
  %inner.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) while(%tuple.2), condition=%inner_condition.1, body=%inner_body.1
  ROOT %tuple.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%add.1, %fusion.1)
}

%inner_body.1 (arg: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %fusion.3 = f32[8,128]{1,0:T(8,128)} fusion(%gte.5), kind=kLoop, calls=%fused_computation.1, backend_config={"window_config":{"estimated_cycles":"10"}}
  ROOT %tuple.4 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%add.3, %fusion.3)
}

%inner_condition.1 (arg: (s32[], f32[8,128])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(3)
  ROOT %compare.1 = pred[]{:T(512)} compare(%gte.3, %constant.1), direction=LT
}

%compared (param_0.2: s32[]) -> pred[] {
  %constant.5 = s32[] constant(8)
  ROOT %compare.3 = pred[] compare(%param_0.2, %constant.5), direction=LT
}

%condition.1 (arg: (s32[], f32[8,128])) -> pred[] {
  ROOT %fusion.9 = pred[]{:T(512)} fusion(%gte.2), kind=kLoop, calls=%compared
}

ENTRY %main.1 (x: f32[8,128]) -> f32[8,128] {
  %while.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) while(%tuple.3), condition=%condition.1, body=%body.1
  %all-reduce-start.1 = f32[8,128]{1,0:T(8,128)} all-reduce-start(%gte.4), replica_groups={{0,1}}, to_apply=%add
  %all-reduce-done.1 = f32[8,128]{1,0:T(8,128)} all-reduce-done(%all-reduce-start.1)
  ROOT %fusion.2 = f32[8,128]{1,0:T(8,128)} fusion(%all-reduce-done.1), kind=kLoop, calls=%fused_computation.1, metadata={op_name="jit(step)/mul"}, backend_config={"window_config":{"estimated_cycles":"7"}}
}
"""  # noqa: E501


BYTES = 8 * 128 * 4
"""Of the program's array."""


def test_loops_count_as_often_as_they_run():
    found = tpu_cycles.operations(PROGRAM)
    timed = {each.name: (each.estimate, each.runs) for each in found if each.estimate}
    assert timed == {"fusion.1": (800, 8), "fusion.3": (240, 24), "fusion.2": (7, 1)}
    first, second = tpu_cycles.longest(found, 2, bytes_a_cycle=1e9)
    assert first["comes from"] == "jit(step)/while/body/exp" and first["share"] == "76.4%" and second["runs"] == 24


def test_a_loop_may_count_in_unsigned_numbers():
    """As those do into which the compiler takes a product and the exchange of its operands between chips."""
    assert tpu_cycles.operations(PROGRAM.replace("s32", "u32")) == [
        each._replace(shape=each.shape.replace("s32", "u32")) for each in tpu_cycles.operations(PROGRAM)
    ]


def by_name(text: str, schedules: dict[str, int] | None = None) -> dict[str, tpu_cycles.Operation]:
    return {each.name: each for each in tpu_cycles.operations(text, schedules)}


def test_what_is_scheduled_counts_instead_of_an_estimate():
    """Also of kernels of our own, of which there is no estimate."""
    found = by_name(PROGRAM.replace('"estimated_cycles":"100"', ""), {"fusion.1": 40})
    assert (found["fusion.1"].estimate, found["fusion.1"].schedule) == (0, 8 * 40)
    assert found["fusion.1"].cycles(1e9) == 8 * 40
    assert found["fusion.2"].cycles(1e9) == found["fusion.2"].estimate == 7


def test_equal_operations_share_what_is_scheduled_for_one_of_them():
    found = by_name(PROGRAM.replace('"100"', '"7"'), {"fusion.1": 40})  # of as many cycles and of one shape
    assert found["fusion.2"].schedule == 40 and found["fusion.3"].schedule == 0


def test_what_has_no_estimate_shares_nothing():
    """Kernels of one shape may do anything; copies that are begun have no figure at all."""
    text = PROGRAM.replace('"estimated_cycles":"100"', "").replace('"estimated_cycles":"7"', "")
    assert by_name(text, {"fusion.1": 40})["fusion.2"].schedule == 0
    assert by_name(text, {"fusion.1": 40})["all-reduce-start.1"].schedule == 0


def test_an_operation_takes_at_least_as_long_as_its_bytes():
    found = by_name(PROGRAM)["fusion.2"]
    assert found.traffic == 2 * BYTES
    assert found.cycles(bytes_a_cycle=8) == 2 * BYTES / 8 and found.cycles(bytes_a_cycle=1e6) == 7


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[8,128]{1,0:T(8,128)}", BYTES),
        ("f32[8,128]{1,0:T(8,128)S(1)}", 0),  # in fast memory
        ("f32[3,100]{1,0:T(8,128)}", BYTES),
        ("f32[100,3]{0,1:T(8,128)}", BYTES),  # the first axis is the inner one
        ("bf16[2,3,100]{2,1,0:T(8,128)(2,1)}", BYTES),
        ("f32[5]{0:T(1024)}", BYTES),
        ("pred[1024]{0}", 1024),
        ("f32[]", 4),
    ],
)
def test_memory_holds_whole_tiles(shape, size):
    """What an operation reads of an array of such a shape."""
    text = PROGRAM.replace("ENTRY %main.1 (x: f32[8,128]) -> f32[8,128] {", f"ENTRY %main.1 (x: f32[8,128]) -> f32[] {{\n  %given.1 = {shape} parameter(0)\n  %sum.1 = f32[]{{:T(128)S(6)}} reduce(%given.1), to_apply=%add")  # fmt: skip  # noqa: E501
    assert by_name(text)["sum.1"].traffic == size


IN_PARTS = """HloModule jit_step, is_scheduled=true

%inner.1 (param_0.1: f32[12,8,128]) -> f32[1,8,128] {
  %param_0.1 = f32[12,8,128]{2,1,0:T(8,128)} parameter(0)
  %constant.1 = s32[]{:T(128)} constant(3)
  ROOT %slice.1 = f32[1,8,128]{2,1,0:T(8,128)} dynamic-slice(%param_0.1, %constant.1), dynamic_slice_sizes={1,8,128}
}

%fused.1 (param_0.2: f32[12,8,128], param_1.2: f32[1,8,128]) -> (f32[12,8,128], f32[1,8,128]) {
  %param_0.2 = f32[12,8,128]{2,1,0:T(8,128)} parameter(0)
  %param_1.2 = f32[1,8,128]{2,1,0:T(8,128)} parameter(1)
  %fusion.5 = f32[1,8,128]{2,1,0:T(8,128)} fusion(%param_0.2), kind=kLoop, calls=%inner.1
  %add.1 = f32[1,8,128]{2,1,0:T(8,128)} add(%fusion.5, %param_1.2)
  %constant.2 = s32[]{:T(128)} constant(3)
  %update.1 = f32[12,8,128]{2,1,0:T(8,128)} dynamic-update-slice(%param_0.2, %add.1, %constant.2)
  ROOT %tuple.1 = (f32[12,8,128]{2,1,0:T(8,128)}, f32[1,8,128]{2,1,0:T(8,128)}) tuple(%update.1, %add.1)
}

ENTRY %main.1 (x: f32[12,8,128], y: f32[1,8,128]) -> f32[12,8,128] {
  %x = f32[12,8,128]{2,1,0:T(8,128)} parameter(0)
  %y = f32[1,8,128]{2,1,0:T(8,128)} parameter(1)
  %fusion.1 = (f32[12,8,128]{2,1,0:T(8,128)}, f32[1,8,128]{2,1,0:T(8,128)}) fusion(%x, %y), kind=kLoop, calls=%fused.1
  %room.1 = f32[12,8,128]{2,1,0:T(8,128)} custom-call(), custom_call_target="AllocateBuffer"
  %copy-start.1 = (f32[12,8,128]{2,1,0:T(8,128)S(1)}, f32[12,8,128]{2,1,0:T(8,128)}, u32[]) copy-start(%x)
  ROOT %gte.1 = f32[12,8,128]{2,1,0:T(8,128)} get-tuple-element(%fusion.1), index=0
}
"""
"""A row of twelve is read, changed in place and written twice; memory is set aside, and a copy runs beside."""


def test_of_an_array_in_parts_the_parts_count():
    found = by_name(IN_PARTS)
    assert found["fusion.1"].traffic == (2 + 2) * BYTES
    assert found["room.1"].traffic == found["copy-start.1"].traffic == 0


def test_a_fusion_of_several_results_in_one_operation():
    """As the largest value with its place."""
    root = "  ROOT %largest.1 = (f32[8,128]{1,0:T(8,128)}, s32[8,128]{1,0:T(8,128)S(1)}) reduce(%param_0, %param_0)"
    text = PROGRAM.replace("  ROOT %exponential.1 = f32[8,128]{1,0:T(8,128)} exponential(%param_0)", root)
    both = root.removeprefix("  ROOT %largest.1 = ").partition(" reduce")[0]
    text = text.replace("ROOT %fusion.2 = f32[8,128]{1,0:T(8,128)}", f"ROOT %fusion.2 = {both}")
    text = text.replace("%fusion.3 = f32[8,128]{1,0:T(8,128)}", f"%fusion.3 = {both}")
    text = text.replace("%fusion.1 = f32[8,128]{1,0:T(8,128)}", f"%fusion.1 = {both}")
    assert by_name(text)["fusion.2"].traffic == 2 * BYTES  # read whole, written into large memory once


def test_bytes_between_chips_count_once():
    (moved,) = [each for each in tpu_cycles.operations(PROGRAM) if each.is_collective]
    assert tpu_cycles.shape_bytes(moved.shape) == 8 * 128 * 4
    assert tpu_cycles.shape_bytes("(bf16[2,3]{1,0}, pred[5]{0}, u8[7]{0}, s32[])") == 12 + 5 + 7 + 4


def test_a_loop_of_unknown_length_is_named():
    with pytest.raises(ValueError, match=r"condition is inner_condition.1 compares with no constant"):
        tpu_cycles.operations(PROGRAM.replace("constant(3)", "parameter(1)"))


def test_what_does_not_fit_is_said_with_its_size():
    message = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 16.52G of 15.75G hbm. Exceeded by 0.77G."
    assert out_of_memory(message) == "no, 16.52G of 15.75G"
    message = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (17.23G) "
    assert out_of_memory(message + "exceeds available HBM (15.75G).") == "no, 17.23G of 15.75G"
    assert out_of_memory("RESOURCE_EXHAUSTED: scoped vmem\nmore") == "no: RESOURCE_EXHAUSTED: scoped vmem"
