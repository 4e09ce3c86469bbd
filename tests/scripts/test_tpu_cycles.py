"""Cycles of a compiled program, loops counted as often as they run: of a text in the TPU compiler's form."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

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
  ROOT %fusion.3 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) fusion(%arg), kind=kLoop, calls=%fused_computation.1, backend_config={"window_config":{"estimated_cycles":"10"}}
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


def test_loops_count_as_often_as_they_run():
    found = tpu_cycles.operations(PROGRAM)
    timed = {each.name: (each.cycles, each.runs) for each in found if each.cycles}
    assert timed == {"fusion.1": (800, 8), "fusion.3": (240, 24), "fusion.2": (7, 1)}
    first, second = tpu_cycles.longest(found, 2)
    assert first["comes from"] == "jit(step)/while/body/exp" and first["share"] == "76.4%" and second["runs"] == 24


def test_a_loop_may_count_in_unsigned_numbers():
    """As those do into which the compiler takes a product and the exchange of its operands between chips."""
    assert tpu_cycles.operations(PROGRAM.replace("s32", "u32")) == [
        each._replace(shape=each.shape.replace("s32", "u32")) for each in tpu_cycles.operations(PROGRAM)
    ]


def test_calls_of_kernels_count_what_is_known_of_them():
    call = PROGRAM.replace("fusion(%gte.1), kind=kLoop", 'custom-call(%gte.1), custom_call_target="tpu_custom_call"')
    call = call.replace("%fusion.1 =", "%twice.7 =").replace('"estimated_cycles":"100"', "")
    assert not [each for each in tpu_cycles.operations(call) if each.name == "twice.7" and each.cycles]
    (found,) = [each for each in tpu_cycles.operations(call, {"twice": 50}) if each.name == "twice.7"]
    assert (found.cycles, found.runs) == (400, 8)


def test_kernels_are_found_wherever_a_program_calls_them():
    def twice(x_ref, out_ref):
        out_ref[...] = 2 * x_ref[...]

    def kernel(x):
        return pl.pallas_call(twice, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype), grid=(3,), name="twice")(x)

    def program(x):
        x, _ = jax.lax.scan(lambda x, _: (jax.checkpoint(kernel)(x), None), x, length=2)
        return jax.lax.platform_dependent(x, tpu=kernel, default=jnp.sin)

    found = list(tpu_cycles.kernels(jax.jit(program).trace(jnp.zeros(8)).jaxpr))
    assert [(each.params["name"], each.params["grid_mapping"].grid) for each in found] == 2 * [("twice", (3,))]


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
