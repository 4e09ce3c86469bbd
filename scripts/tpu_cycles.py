"""What a program takes on a TPU, operation by operation, by what the compiler says: loops counted as often as they run.

The compiler writes an estimate of cycles beside every operation of an optimised program, and, where asked, the
instructions that it scheduled (`scripts/tpu_schedules.py`). XLA's own cost analysis counts the body of a loop once,
whatever its length.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{\s*$")
_OPERATION = re.compile(r"^\s+(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = (?P<shape>.+?) (?P<code>[\w\-]+)\((?P<rest>.*)$")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_SOURCE = re.compile(r'op_name="([^"]*)"')
_CALLED = re.compile(r"(body|condition|to_apply|branch_computations|calls)=\{?%?([\w.\-]+)")
_CONSTANT = re.compile(r"^\d+")
_NAMES = re.compile(r"%([\w.\-]+)")
_ARRAY = re.compile(r"\b(?P<kind>[a-z]+\d*)\[(?P<sizes>[\d,]*)\](?:\{(?P<order>[\d,]*)(?P<layout>[^}]*)\})?")
_TILE = re.compile(r"T\((\d+(?:,\d+)*)\)")
_BITS = {"pred": 8}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_CONTROL = ("while", "call", "conditional")
_NO_WORK = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id")
_SLICES = ("slice", "dynamic-slice", "gather")


class Operation(NamedTuple):
    """One operation of a program; figures are of all its runs together.

    Attributes:
      name, code, shape: as in the program; `code` is "fusion", "convolution", "all-reduce", ...
      source: the JAX operation that it comes from.
      estimate: cycles, by the compiler's estimate; 0 where it has none.
      schedule: cycles, by the instructions scheduled; 0 where they are not known.
      traffic: bytes that it reads and writes in the chip's large memory (HBM), with what fills up its tiles. Those of
        copies that run beside other operations, and of exchanges between chips, are left out.
      runs: how often it runs in one call of the program.
    """

    name: str
    code: str
    shape: str
    source: str
    estimate: int
    schedule: int
    traffic: float
    runs: int

    @property
    def is_collective(self) -> bool:
        """Whether it moves bytes between chips; the end of one that was begun before does not count again."""
        return self.code.removesuffix("-start") in COLLECTIVES

    def cycles(self, bytes_a_cycle: float) -> float:
        """As long as its instructions take (not known: its estimate) or its bytes, whichever is longer."""
        return max(self.schedule or self.estimate, self.traffic / bytes_a_cycle)


def operations(text: str, schedules: Mapping[str, int] | None = None) -> list[Operation]:
    """Every operation of an optimised program, `jax.stages.Compiled.as_text()`; fused ones count as one.

    Args:
      schedules: cycles of a run by the operation's name (`tpu_schedules.read_schedules`). One that is not there takes
        what another of its shape and estimate does: equal ones are written once.

    Raises:
      ValueError: a loop whose condition compares with no constant.
    """
    program = _Program(text)

    @functools.cache
    def inside(name: str) -> tuple[Operation, ...]:
        found: list[Operation] = []
        for line in program.computations[name].values():
            if line.code in _CONTROL:
                for called, times in program.called(line):
                    found += (_times(each, times) for each in inside(called))
            elif line.code not in _NO_WORK:
                known, traffic = (schedules or {}).get(line.name, 0), program.traffic(name, line)
                code, shape = program.exchange(line) or (line.code, line.shape)
                found.append(Operation(line.name, code, shape, line.source, line.estimate, known, traffic, 1))
        return tuple(found)

    found = inside(program.entry)
    twins = {_kind(each): each.schedule // each.runs for each in found if each.schedule and each.estimate}
    return [each._replace(schedule=each.schedule or twins.get(_kind(each), 0) * each.runs) for each in found]


def _times(operation: Operation, runs: int) -> Operation:
    return operation._replace(
        estimate=operation.estimate * runs,
        schedule=operation.schedule * runs,
        traffic=operation.traffic * runs,
        runs=operation.runs * runs,
    )


def _kind(operation: Operation) -> tuple[str, str, int]:
    """What operations with one schedule share; one without an estimate cannot be told from others by it."""
    arrays = ",".join(f"{each['kind']}[{each['sizes']}]" for each in _ARRAY.finditer(operation.shape))
    return operation.code, arrays, operation.estimate // operation.runs


class _Line(NamedTuple):
    """One operation as it is written."""

    name: str
    code: str
    shape: str
    operands: tuple[str, ...]
    rest: str
    is_root: bool

    @property
    def source(self) -> str:
        source = _SOURCE.search(self.rest)
        return source[1] if source else self.name

    @property
    def estimate(self) -> int:
        cycles = _CYCLES.search(self.rest)
        return int(cycles[1]) if cycles else 0

    @property
    def called(self) -> dict[str, str]:
        return dict(_CALLED.findall(self.rest))


class _Program:
    """An optimised program as text."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, _Line]] = {}
        self.entry, lines = "", {}
        for line in text.splitlines():
            if match := _COMPUTATION.match(line):
                lines = self.computations[match["name"]] = {}
                self.entry = match["name"] if line.startswith("ENTRY") else self.entry
            elif match := _OPERATION.match(line):
                operands = tuple(_NAMES.findall(_closed(match["rest"])))
                lines[match["name"]] = _Line(
                    match["name"], match["code"], match["shape"], operands, match["rest"], bool(match["root"])
                )

    def called(self, line: _Line) -> list[tuple[str, int]]:
        """(computation, how often it runs) of a control operation; of a choice, the first."""
        if line.code == "while":
            return [(line.called["body"], self._trips(line.called["condition"]))]
        return [(next(iter(line.called.values())), 1)]

    def _trips(self, condition: str) -> int:
        """How often a loop runs: its counter starts at 0 and is compared with a constant."""
        lines = list(self.computations[condition].values())
        for line in self.computations[condition].values():
            for name in line.called.values():
                lines += self.computations[name].values()
        constants = [int(_CONSTANT.match(line.rest)[0]) for line in lines if _is_count(line)]  # type: ignore[index]
        if not constants:
            raise ValueError(f"the loop whose condition is {condition} compares with no constant")
        return max(constants)

    def exchange(self, line: _Line) -> tuple[str, str] | None:
        """(code, shape) of the exchange between chips that a fusion begins; other operations go on beside it."""
        begins = line.code == "fusion" and line.name.startswith("async-collective-start")
        inner = self.computations[line.called["calls"]].values() if begins else ()
        return next(((each.code, each.shape) for each in inner if each.code in COLLECTIVES), None)

    def traffic(self, computation: str, line: _Line) -> float:
        """`Operation.traffic` of one run."""
        beside = line.code.endswith(("-start", "-done")) or line.name.startswith("async-collective-")
        if beside or line.code in COLLECTIVES or "AllocateBuffer" in line.rest:
            return 0
        lines = self.computations[computation]
        read = [
            min(_large(lines[name].shape), self._read(computation, line, place))
            for place, name in enumerate(line.operands)
            if name in lines
        ]
        written = _arrays(line.shape)
        if line.code == "fusion":
            written = [min(pair) for pair in zip(written, self._written(line.called["calls"]), strict=True)]
        return sum(read) + sum(written)

    def _read(self, computation: str, line: _Line, place: int) -> float:
        """Bytes of an operand that an operation reads, wherever they lie."""
        if line.code == "fusion":
            inner = line.called["calls"]
            (parameter,) = [each for each in self.computations[inner].values() if _is_parameter(each, place)]
            return self._used(inner, parameter.name)
        if line.code == "bitcast":
            return self._used(computation, line.name)
        if line.code in _SLICES and place == 0:
            return _bytes(line.shape)
        if line.code == "dynamic-update-slice" and place == 0:
            return 0
        return _bytes(self.computations[computation][line.operands[place]].shape)

    def _used(self, computation: str, name: str) -> float:
        lines = self.computations[computation].values()
        return sum(
            self._read(computation, line, place)
            for line in lines
            for place, operand in enumerate(line.operands)
            if operand == name
        )

    def _written(self, computation: str) -> list[float]:
        """Bytes of each result of a fused computation: of one that is changed in place, what changes."""
        lines = self.computations[computation]
        (root,) = [line for line in lines.values() if line.is_root]
        if root.code == "tuple":
            return [size for name in root.operands for size in self._changed(computation, lines[name])]
        return self._changed(computation, root)

    def _changed(self, computation: str, line: _Line) -> list[float]:
        lines = self.computations[computation]
        if line.code == "bitcast":
            return self._changed(computation, lines[line.operands[0]])
        if line.code == "fusion":
            return self._written(line.called["calls"])
        if line.code == "dynamic-update-slice":
            return [_bytes(lines[line.operands[1]].shape)]
        return [_padded(each) for each in _ARRAY.finditer(line.shape)]


def _closed(rest: str) -> str:
    """The operands of an operation, of what follows its opening bracket."""
    depth = 1
    for place, character in enumerate(rest):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return rest[:place]
    return rest


def _is_count(line: _Line) -> bool:
    return line.code == "constant" and line.shape.startswith(("s32[]", "u32[]"))


def _is_parameter(line: _Line, place: int) -> bool:
    return line.code == "parameter" and line.rest.startswith(f"{place})")


def _arrays(shape: str) -> list[float]:
    """Bytes in the large memory of each array of a shape; 0 of one that lies elsewhere (S(1) is fast memory)."""
    return [0.0 if re.search(r"S\([1-9]", each["layout"] or "") else _padded(each) for each in _ARRAY.finditer(shape)]


def _large(shape: str) -> float:
    return sum(_arrays(shape))


def _bytes(shape: str) -> float:
    return sum(map(_padded, _ARRAY.finditer(shape)))


def _padded(array: re.Match) -> float:
    """Bytes of an array with what fills up its tiles: of f32[3,5]{1,0:T(8,128)} those of [8, 128]."""
    sizes = [int(size) for size in array["sizes"].split(",") if size]
    if tile := _TILE.search(array["layout"] or ""):
        tiles = [int(size) for size in tile[1].split(",")]
        minor_first = [int(axis) for axis in array["order"].split(",") if axis]
        for axis, size in zip(minor_first, reversed(tiles), strict=False):
            sizes[axis] = -(-sizes[axis] // size) * size
    return math.prod(sizes) * _bits(array["kind"]) / 8


def _bits(kind: str) -> int:
    return _BITS.get(kind) or int(re.sub(r"\D", "", kind) or 8)


def longest(found: Sequence[Operation], count: int, bytes_a_cycle: float) -> list[dict]:
    """Rows of a table: the operations with the most cycles, with their share of all."""
    total = max(sum(each.cycles(bytes_a_cycle) for each in found), 1)
    return [
        {
            "share": f"{each.cycles(bytes_a_cycle) / total:.1%}",
            "Mcycles": round(each.cycles(bytes_a_cycle) / 1e6, 2),
            "scheduled": round(each.schedule / 1e6, 2),
            "estimated": round(each.estimate / 1e6, 2),
            "MiB": round(each.traffic / 2**20, 1),
            "runs": each.runs,
            "shape": each.shape[:60],
            "comes from": each.source[-90:],
        }
        for each in sorted(found, key=lambda each: -each.cycles(bytes_a_cycle))[:count]
    ]


def shape_bytes(shape: str) -> float:
    """Bytes of an operation's result as its shape is written, "f32[8,128]{1,0:T(8,128)}" or a tuple of such, without
    what fills up its tiles.
    """
    return sum(
        _bits(each["kind"]) / 8 * math.prod(int(n) for n in each["sizes"].split(",") if n)
        for each in _ARRAY.finditer(shape)
    )
