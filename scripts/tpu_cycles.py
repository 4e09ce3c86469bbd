"""What the TPU compiler says that a compiled program takes: its estimated cycles, loops counted as often as they run.

The compiler writes an estimate beside every operation of an optimised program; XLA's own cost analysis counts the body
of a loop once, whatever its length.
"""

from __future__ import annotations

import functools
import math
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from pose_common.training.flops import inner_programs

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{\s*$")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<shape>.+?) (?P<code>[\w\-]+)\(")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_SOURCE = re.compile(r'op_name="([^"]*)"')
_CALLED = re.compile(r"(body|condition|to_apply|branch_computations|calls)=\{?%?([\w.\-]+)")
_CONSTANT = re.compile(r"= [su]32\[\](?:\{[^}]*\})? constant\((\d+)\)")
_BITS = {"pred": 8}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


class Operation(NamedTuple):
    """One operation of a program.

    Attributes:
      name, code, shape: as in the program; `code` is "fusion", "convolution", "all-reduce", ...
      source: the JAX operation that it comes from.
      cycles: estimated, of all its runs together; 0 where the compiler has no estimate.
      runs: how often it runs in one call of the program.
    """

    name: str
    code: str
    shape: str
    source: str
    cycles: int
    runs: int

    @property
    def is_collective(self) -> bool:
        """Whether it moves bytes between chips; the end of one that was begun before does not count again."""
        return self.code.removesuffix("-start") in COLLECTIVES


def operations(text: str, of_kernels: Mapping[str, int] | None = None) -> list[Operation]:
    """Every operation of an optimised program, `jax.stages.Compiled.as_text()`; fused ones count as one.

    Args:
      of_kernels: cycles of a call of each Pallas kernel, of which the compiler says nothing (`kernel_cycles`).

    Raises:
      ValueError: a loop whose condition compares with no constant.
    """
    computations, entry = _computations(text)

    @functools.cache
    def inside(name: str) -> tuple[Operation, ...]:
        return tuple(_expand(computations[name]))

    def _expand(lines: Iterable[str]) -> Iterable[Operation]:
        for line in lines:
            match = _OPERATION.match(line)
            if match is None:
                continue
            code = match["code"]
            if code in ("while", "call", "conditional"):
                for called, times in _called(line, code, computations):
                    for each in inside(called):
                        yield each._replace(cycles=each.cycles * times, runs=each.runs * times)
                continue
            cycles, source = _CYCLES.search(line), _SOURCE.search(line)
            known = int(cycles[1]) if cycles else (of_kernels or {}).get(_base_name(match["name"]), 0)
            yield Operation(match["name"], code, match["shape"], source[1] if source else match["name"], known, 1)

    return list(inside(entry))


KERNEL_DUMP = "--xla_jf_dump_to={} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=^final_bundles$"
"""What `LIBTPU_INIT_ARGS` has to be when the compiler starts, for `kernel_cycles` to find its schedules in a folder."""
_BUNDLES = re.compile(r"total scheduled bundles:\s+(\d+)")


def kernel_cycles(program: Any, device: jax.Device, folder: pathlib.Path) -> dict[str, int]:
    """Cycles of one call of each Pallas kernel in a traced program: instructions of its schedule, times the grid.

    Each is compiled alone. Waiting for memory is not in it; a kernel that moves more than it computes takes longer.

    Args:
      program: `jax.stages.Traced.jaxpr`.
      device: of a TPU's topology.
      folder: an empty one, named in `KERNEL_DUMP`.
    """
    found = {}
    sharding = jax.sharding.SingleDeviceSharding(device)
    for equation in kernels(program):
        name = equation.params["name"]
        if name in found:
            continue

        def alone(*arguments, equation=equation):
            return equation.primitive.bind(*arguments, **equation.params)

        arguments = [jax.ShapeDtypeStruct(x.aval.shape, x.aval.dtype, sharding=sharding) for x in equation.invars]
        jax.jit(alone).lower(*arguments).compile()
        (schedule,) = folder.glob("*-alone.*-schedule-analysis_final_bundles.txt")
        bundles = int(_BUNDLES.search(schedule.read_text())[1])  # type: ignore[index]
        schedule.unlink()
        found[name] = bundles * math.prod(equation.params["grid_mapping"].grid)
    return found


def kernels(program: Any) -> Iterator[Any]:
    """The equations of a traced program that call Pallas kernels, wherever they are."""
    for equation in getattr(program, "jaxpr", program).eqns:
        if equation.primitive.name == "pallas_call":
            yield equation
        else:
            for inner in inner_programs(equation.params):
                yield from kernels(inner)


def _base_name(name: str) -> str:
    return re.sub(r"(\.\d+)+$", "", name)


def longest(found: Sequence[Operation], count: int) -> list[dict]:
    """Rows of a table: the operations with the most cycles, with their share of all."""
    total = max(sum(each.cycles for each in found), 1)
    return [
        {
            "share": f"{each.cycles / total:.1%}",
            "Mcycles": round(each.cycles / 1e6, 2),
            "runs": each.runs,
            "shape": each.shape[:60],
            "comes from": each.source[-90:],
        }
        for each in sorted(found, key=lambda each: -each.cycles)[:count]
    ]


def shape_bytes(shape: str) -> float:
    """Bytes of an operation's result as its shape is written, "f32[8,128]{1,0:T(8,128)}" or a tuple of such."""
    return sum(
        _BITS.get(kind, int(re.sub(r"\D", "", kind) or 8)) / 8 * math.prod(int(n) for n in sizes.split(",") if n)
        for kind, sizes in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shape)
    )


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    found: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            lines = found[match["name"]] = []
            entry = match["name"] if line.startswith("ENTRY") else entry
        else:
            lines.append(line)
    return found, entry


def _called(line: str, code: str, computations: dict[str, list[str]]) -> list[tuple[str, int]]:
    """(computation, how often it runs) of a control operation; of a choice, the first."""
    called = dict(_CALLED.findall(line))
    if code == "while":
        return [(called["body"], _trips(called["condition"], computations))]
    return [(next(iter(called.values())), 1)]


def _trips(condition: str, computations: dict[str, list[str]]) -> int:
    """How often a loop runs: its counter starts at 0 and is compared with a constant."""
    lines = list(computations[condition])
    for line in computations[condition]:
        for match in _CALLED.finditer(line):
            lines += computations.get(match[2], [])
    constants = [int(match[1]) for line in lines if (match := _CONSTANT.search(line))]
    if not constants:
        raise ValueError(f"the loop whose condition is {condition} compares with no constant")
    return max(constants)
