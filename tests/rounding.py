"""How far rounding alone moves what the tests compare with recorded numbers.

A bound that lies within the effect of rounding passes or fails by chance of the processor: another instruction set,
another number of threads, another compiler adds in another order. This pytest plugin measures the effect. It moves
every recorded float by at most one unit in the last place (integers, zeros and ones stay: they are labels, masks and
exact peaks), lets the tests compare as they do, and notes for every comparison how large the error was as a share of
the tolerance.

    python -m tests.rounding [pytest arguments]

runs the tests that read recordings, compiled as users' programs are, unmoved and with several random moves, and prints
each comparison whose largest error is over a third of its tolerance. Such a tolerance is too narrow: widen it to a
multiple of the printed error, or compare in float64.
"""

from __future__ import annotations

import collections
import json
import os
import pathlib
import subprocess
import sys
import traceback

import numpy as np

SEED, LOG = "GOLDEN_ULP_SEED", "GOLDEN_MARGINS"
"""Environment variables: seed of the moves ('' for none), and the file that gets a line for every comparison."""
AS_USERS_COMPILE = "--xla_cpu_use_fusion_emitters=true --xla_backend_optimization_level=3"
"""XLA's defaults, which `tests/conftest.py` leaves for what compiles in less time."""
LARGEST_SHARE = 1 / 3
SEEDS = (0, 1, 2)


def move_by_an_ulp(array: np.ndarray, seed: str) -> np.ndarray:
    """The array with every non-integral float moved by -1, 0 or 1 units in the last place.

    The move depends on the seed and on the value alone, so that equal values (ties, plateaus) stay equal.
    """
    if not seed or array.dtype not in (np.float32, np.float64):
        return array
    bits = np.ascontiguousarray(array).view(np.uint32 if array.dtype == np.float32 else np.uint64).astype(np.uint64)
    mixed = (bits + np.uint64(1 + int(seed))) * np.uint64(0x9E3779B97F4A7C15)  # wraps around
    step = (mixed >> np.uint64(40)) % np.uint64(3)
    up, down = (np.nextafter(array, array.dtype.type(end)) for end in (np.inf, -np.inf))
    moved = np.select([step == 1, step == 2], [up, down], array)
    return np.where(array == np.rint(array), array, moved).astype(array.dtype)


def share_of_tolerance(actual, desired, rtol: float, atol: float) -> float:
    """Largest |actual - desired| / (atol + rtol |desired|); entries that agree count 0."""
    actual, desired = np.broadcast_arrays(np.asarray(actual, np.float64), np.asarray(desired, np.float64))
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.abs(actual - desired) / (atol + rtol * np.abs(desired))
    return float(np.nan_to_num(np.where(actual == desired, 0.0, share), nan=np.inf).max(initial=0.0))


def pytest_configure() -> None:
    """Notes every `np.testing.assert_allclose`; with moved recordings none of them fails."""
    log = os.environ.get(LOG)
    if not log:
        return
    compare = np.testing.assert_allclose

    def noting(actual, desired, rtol=1e-7, atol=0, *args, **options):
        share = share_of_tolerance(actual, desired, rtol, atol)
        place = next(
            (
                f"{frame.filename}:{frame.lineno}"
                for frame in reversed(traceback.extract_stack())
                if pathlib.Path(frame.filename).name.startswith("test_")
            ),
            "?",
        )
        with open(log, "a", encoding="utf8") as file:
            file.write(json.dumps({"place": place, "share": share, "rtol": float(rtol), "atol": float(atol)}) + "\n")
        if not os.environ.get(SEED):
            compare(actual, desired, rtol, atol, *args, **options)

    np.testing.assert_allclose = noting


def _tests_that_read_recordings() -> list[str]:
    root = pathlib.Path(__file__).parent
    return sorted(str(path) for path in root.rglob("test_*.py") if "golden" in path.read_text(encoding="utf8"))


def main(arguments: list[str]) -> int:
    """Runs the tests and prints the table; the exit status says whether a tolerance is too narrow."""
    log = pathlib.Path(os.environ.get(LOG, ".cache/golden_margins.jsonl")).absolute()
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    tests = arguments or _tests_that_read_recordings()
    for seed in ("", *map(str, SEEDS)):
        environment = os.environ | {SEED: seed, LOG: str(log), "XLA_FLAGS": AS_USERS_COMPILE}
        command = [sys.executable, "-m", "pytest", "-p", "tests.rounding", "--durations=0", "-q", "--no-header", *tests]
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False)
    shares: dict[str, float] = collections.defaultdict(float)
    bounds: dict[str, dict] = {}
    for line in log.read_text(encoding="utf8").splitlines():
        row = json.loads(line)
        if row["share"] >= shares[row["place"]]:
            shares[row["place"]], bounds[row["place"]] = row["share"], row
    narrow = sorted((place for place, share in shares.items() if share > LARGEST_SHARE), key=shares.get, reverse=True)
    for place in narrow:
        row = bounds[place]
        print(f"{shares[place]:8.2f} of rtol {row['rtol']:.3g} atol {row['atol']:.3g}  {place}")
    print(f"{len(shares)} comparisons, {len(narrow)} with an error over {LARGEST_SHARE:.2f} of the tolerance")
    return 1 if narrow else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
