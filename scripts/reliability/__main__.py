"""Tries many times what breaks a run, and says what survived.

    python -m scripts.reliability --out=workdir/reliability                  # everything; hours on two cores
    python -m scripts.reliability weights pictures --out=workdir/reliability # these parts
    python -m scripts.reliability weights --count=20 --first=100             # cases 100 to 119 alone

Every case is told by the seed and its number, so that a fault can be had again. The exit status is 1 where there
was one. It needs Linux, a checkout with its tests, and the `test` extra; `weights` reads .pth files where PyTorch
is installed, and else sees to it that they are refused.
"""

from __future__ import annotations

import argparse
import importlib
import pathlib
import sys
from collections.abc import Sequence

from scripts.reliability import cases, outcomes

CASES = {name: f"scripts.reliability.{name}" for name in ("weights", "annotations", "pictures")}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.reliability", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(CASES)} (default: all)")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("workdir/reliability"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--count", type=int, help="how many cases of each part (default: each part's own number)")
    args = parser.parse_args(argv)
    if unknown := set(args.parts) - set(CASES):
        parser.error(f"{', '.join(sorted(unknown))}: the parts are {', '.join(CASES)}")
    faults = 0
    for name in args.parts or CASES:
        part = importlib.import_module(CASES[name])
        folder = (args.out / name).absolute()
        found = cases.run(CASES[name], folder, args.seed, args.first, args.count or part.COUNT)
        outcomes.write(args.out / f"{name}.jsonl", found)
        outcomes.print_table(part.TITLE, found)
        faults += sum(outcome.fault for outcome in found)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
