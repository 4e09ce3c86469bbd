"""What is in a traced program."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pose_common.training.flops import inner_programs


def products(program: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """(operands' shapes and types, their precisions) of every product and convolution of a traced program."""
    for equation in getattr(program, "jaxpr", program).eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield tuple(operand.aval for operand in equation.invars), equation.params["precision"]
        for inner in inner_programs(equation.params):
            yield from products(inner)
