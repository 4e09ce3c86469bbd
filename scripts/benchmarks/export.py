"""Exported files beside JAX, in one run on the CPU: time of a batch, and processor time over all cores.

    python -m scripts.benchmarks.export --method=posebh --batches=1,8
    python -m scripts.benchmarks.export vitpose++_base.pth --formats=stablehlo,onnx
    python -m scripts.benchmarks.export boir_w32.pth --size=512,512 --batches=1

Rounds go through JAX and the files by turns and the smallest figure counts, so that other work on the machine weighs
little; on processor time it has next to no influence.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from pose_common.evaluation import result_table as tables
from pose_common.export.program import Program
from scripts.export import FORMATS, add_model_arguments, example, program_of


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser)
    parser.add_argument("--formats", default=",".join(FORMATS), help="separated by commas")
    parser.add_argument("--batches", default="1,8", help="numbers of pictures, separated by commas")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", help="also write the table to this path (.json, .csv, .md)")
    args = parser.parse_args(argv)
    try:
        program = program_of(args)
        batches = [int(size) for size in args.batches.split(",")]
        rows = run(program, args.formats.split(","), batches, args.rounds)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    tables.show(rows, title=f"{program.about['model']}, {program.size[0]}x{program.size[1]}")
    if args.out:
        tables.save(rows, args.out)
    return 0


def run(program: Program, formats: Sequence[str], batches: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Rows of the table."""
    with tempfile.TemporaryDirectory() as folder:
        candidates = {"JAX": jax.jit(program.function)}
        for name in formats:
            write, read = FORMATS[name]
            path = pathlib.Path(folder) / f"model.{name}"
            write(program, path, None)
            candidates[name] = read(path)
        rows = []
        for size in batches:
            found = smallest(candidates, example(program, size), rounds)
            wall, processor = found["JAX"]
            for name, (seconds, used) in found.items():
                rows.append(
                    {
                        "pictures": size,
                        "by": name,
                        "ms": round(1e3 * seconds, 1),
                        "processor ms": round(1e3 * used, 1),
                        "speed beside JAX": round(wall / seconds, 2),
                        "by processor time": round(processor / used, 2),
                    }
                )
    return rows


def smallest(candidates: dict[str, Callable], images: np.ndarray, rounds: int) -> dict[str, tuple[float, float]]:
    """(seconds, seconds of all cores) of each candidate's best rounds, after one that compiles."""
    best = dict.fromkeys(candidates, (float("inf"), float("inf")))
    for number in range(rounds + 1):
        for name, candidate in candidates.items():
            began, used = time.perf_counter(), time.process_time()
            jax.block_until_ready(candidate(images))
            if number:
                times = time.perf_counter() - began, time.process_time() - used
                best[name] = min(best[name][0], times[0]), min(best[name][1], times[1])
    return best


if __name__ == "__main__":
    sys.exit(main())
