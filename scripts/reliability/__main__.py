"""Tries many times what breaks a run, and says what survived.

    python -m scripts.reliability --out=workdir/reliability                  # everything; hours on two cores
    python -m scripts.reliability weights pictures --out=workdir/reliability # these parts
    python -m scripts.reliability weights --count=20 --first=100             # cases 100 to 119 alone

The seed and its number determine a case, so that a fault can be reproduced. The exit status is 1 if there was one. It
needs Linux, a checkout with its tests, and the `test` extra; `weights` reads .pth files if PyTorch is installed, and
otherwise checks that they are refused.
"""

from __future__ import annotations

import argparse
import importlib
import pathlib
import sys
from collections.abc import Sequence

from scripts.reliability import cases, outcomes

CASES = ("weights", "annotations", "pictures")
"""Parts of cases that a child process goes through; each is a module of that name, as the others are."""
RUNS = ("kills", "processes", "long_run")
PARTS = (*CASES, *RUNS)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.reliability", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("workdir/reliability"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--count", type=int, help="how many cases of each part (default: each part's own number)")
    parser.add_argument("--minutes", type=float, help="of each part of whole runs, begin no more after so many")
    args = parser.parse_args(argv)
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))}: the parts are {', '.join(PARTS)}")
    faults = 0
    for name in args.parts or PARTS:
        part = importlib.import_module(f"scripts.reliability.{name}")
        folder, count = (args.out / name).absolute(), args.count or part.COUNT
        if name in CASES:
            found = cases.run(part.__name__, folder, args.seed, args.first, count)
        else:
            found = part.run(folder, args.seed, args.first, count, args.minutes)
        outcomes.write(args.out / f"{name}.jsonl", found)
        outcomes.print_table(part.TITLE, found)
        faults += sum(outcome.fault for outcome in found)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
