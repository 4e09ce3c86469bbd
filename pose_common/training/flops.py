"""How much a step computes, counted from its program, and how much a device could."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from pose_common.convolution import FILLED

PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "Tesla T4": 65e12,
    "Tesla V100": 125e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L4": 121e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}
"""Operations a second of dense products of bfloat16 (T4, V100: float16), as the makers state them, by JAX's
`device_kind`; of GPUs its beginning."""
_FILLED = re.compile(FILLED.format(r"(\d+)", r"(\d+)"))


def peak_flops(kind: str) -> float | None:
    """Of a device of this kind; None where it is not known."""
    words = kind.replace("-", " ").split()
    return PEAKS.get(kind) or PEAKS.get(" ".join(words[:2]) if kind.startswith(("NVIDIA", "Tesla")) else "")


def step_flops(step: Callable, *arguments: Any) -> float | None:
    """Floating-point operations of `step(*arguments)` on all devices together; None of a step by `pmap`.

    Products and convolutions count, two operations a multiplication, and nothing else. A scan counts as often as it
    runs, which the compiler's own cost analysis does not see; of a branch the larger side counts, of a platform's own
    way what it stands for, a loop of unknown length once. What is computed again in the backward pass (`config.remat`)
    counts again; zeros that a kernel is filled up with (`config.fold_channels`) do not count. A traced `jit` is not
    traced a second time when it is called.
    """
    trace = getattr(step, "trace", None)
    return None if trace is None else jaxpr_flops(trace(*arguments).jaxpr)


def jaxpr_flops(program: ClosedJaxpr | Jaxpr, filled: float = 1.0) -> float:
    """See `step_flops`.

    Args:
      filled: share of the values in convolutions' kernels that are no zeros, where no equation says another.
    """
    jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    return float(sum(_equation(equation, filled) for equation in jaxpr.eqns))


def _equation(equation: Any, filled: float) -> float:
    name, parameters = equation.primitive.name, equation.params
    if scope := _FILLED.search(str(equation.source_info.name_stack)):
        filled = int(scope[1]) / int(scope[2])
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2.0 * filled * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        # Each output is a sum over the kernel, but for the zeros that a dilated input (a transposed convolution, the
        # gradient of a stride) is filled up with.
        kernel = equation.invars[1].aval
        outputs = kernel.shape[parameters["dimension_numbers"].rhs_spec[0]]
        zeros = math.prod(parameters["lhs_dilation"])
        return 2.0 * filled * equation.outvars[0].aval.size * kernel.size / outputs / zeros
    inner = [jaxpr_flops(program, filled) for program in inner_programs(parameters)]
    if None in (platforms := parameters.get("branches_platforms") or ()):
        return inner[platforms.index(None)]
    if name == "cond":
        return max(inner)
    return sum(inner) * (parameters["length"] if name == "scan" else 1)


def inner_programs(parameters: dict[str, Any]) -> Iterator[ClosedJaxpr | Jaxpr]:
    """The programs that an equation with these parameters runs: bodies, branches, called functions."""
    for leaf in jax.tree.leaves(parameters, is_leaf=lambda value: isinstance(value, (ClosedJaxpr, Jaxpr))):
        if isinstance(leaf, (ClosedJaxpr, Jaxpr)):
            yield leaf
