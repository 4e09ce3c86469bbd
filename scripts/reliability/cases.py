"""Cases in child processes with bounds, so that a crash or a hang costs one case and is told by its number.

A part is a module with

    SECONDS, MEGABYTES       bounds of one case
    prepare(folder, seed)    -> material that every case of a child uses
    case(material, number)   -> [(kind, result, detail, fault)], one or several

and a child is `python -m scripts.reliability.cases <module> <folder> <seed> <first> <end>`.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import pathlib
import subprocess
import sys
import time
import traceback
from typing import Any

from scripts.reliability import bounds
from scripts.reliability.outcomes import Outcome

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHILD, MOST_DEATHS = "child process", 10
START_SECONDS = 300
"""For the imports and the material of a child."""


def run(module: str, folder: pathlib.Path, seed: int, first: int, count: int) -> list[Outcome]:
    """The outcomes of cases first ... first + count - 1, whatever the children come to."""
    folder.mkdir(parents=True, exist_ok=True)
    part = importlib.import_module(module)
    file, end = folder / "cases.jsonl", first + count
    file.unlink(missing_ok=True)
    found: list[Outcome] = []
    next_case = first
    while next_case < end:
        why = _child(module, folder, seed, next_case, end, file, part.SECONDS)
        found = _read(file)
        next_case = max((outcome.number for outcome in found), default=first - 1) + 1
        if next_case < end:
            _append(file, [Outcome(next_case, CHILD, "died", why, fault=True)])
            print(f"case {next_case}: {why}", file=sys.stderr)
            if sum(outcome.kind == CHILD for outcome in found) >= MOST_DEATHS:
                raise RuntimeError(f"{module}: more than {MOST_DEATHS} children died; the last: {why}")
            next_case += 1
    return _read(file)


def _child(module: str, folder: pathlib.Path, seed: int, first: int, end: int, file: pathlib.Path, seconds: int) -> str:
    """Runs one child until it ends or hangs; says how it ended."""
    command = [sys.executable, "-m", "scripts.reliability.cases", module, folder, seed, first, end]
    log = folder / "child.log"
    with log.open("w") as output:
        child = subprocess.Popen(
            list(map(str, command)), cwd=ROOT, env=bounds.quiet_threads(), stdout=output, stderr=subprocess.STDOUT
        )
        size, since, patience = -1, time.monotonic(), START_SECONDS
        while child.poll() is None:
            time.sleep(0.2)
            now = file.stat().st_size if file.exists() else 0
            if now != size:
                if size >= 0:
                    patience = 2 * seconds + 10
                size, since = now, time.monotonic()
            elif time.monotonic() - since > patience:
                child.kill()
                child.wait()
                return f"silent for {patience} s, killed"
    last = (log.read_text(errors="replace").strip().splitlines() or ["nothing said"])[-1]
    return f"ended with status {child.returncode}: {last}"


def _read(file: pathlib.Path) -> list[Outcome]:
    if not file.exists():
        return []
    lines = file.read_text().split("\n")[:-1]
    return [Outcome(**json.loads(line)) for line in lines]


def _append(file: pathlib.Path, outcomes: list[Outcome]) -> None:
    with file.open("a") as lines:
        lines.write("".join(json.dumps(dataclasses.asdict(outcome)) + "\n" for outcome in outcomes))


def _one(part: Any, material: Any, number: int) -> list[tuple[str, str, str, bool]]:
    """The case, or what it raised where a case must not raise."""
    try:
        with bounds.time_limit(part.SECONDS):
            return part.case(material, number)
    except bounds.TimeLimit as error:
        return [("hang", "too slow", str(error), True)]
    except MemoryError:
        return [("memory", "over the bound", f"over {part.MEGABYTES} MB", True)]
    except Exception as error:  # whatever comes out here, a user would see as a traceback
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{pathlib.Path(where.filename).name}:{where.lineno}"
        return [("traceback", type(error).__name__, f"{place}: {error!s:.300}", True)]


def main() -> None:
    """The child."""
    module, folder, seed, first, end = sys.argv[1:]
    part = importlib.import_module(module)
    os.environ.setdefault("TQDM_DISABLE", "1")
    material = part.prepare(pathlib.Path(folder), int(seed))
    for number in range(int(first), int(end)):
        bounds.limit_memory(2 * part.MEGABYTES)  # twice: what is over the bound is measured and told by its case
        found, seconds, megabytes = bounds.measured(_one, part, material, number)
        if megabytes > part.MEGABYTES:
            found.append(("memory", "over the bound", f"{megabytes:.0f} MB; {found[-1][2]}", True))
        each = round(seconds / len(found), 3), round(megabytes, 1)
        _append(
            pathlib.Path(folder) / "cases.jsonl",
            [Outcome(number, kind, result, detail[:2000], fault, *each) for kind, result, detail, fault in found],
        )


if __name__ == "__main__":
    main()
