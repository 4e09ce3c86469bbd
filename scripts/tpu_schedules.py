"""The instructions that the TPU compiler scheduled for each operation, loops counted as often as they run.

The compiler writes them where it is told to when it starts. It writes what several equal operations share once, under
the name of one of them.
"""

from __future__ import annotations

import pathlib
import re

DUMP = "--xla_jf_dump_to={} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=^final_bundles$"
"""What `LIBTPU_INIT_ARGS` has to be when the compiler starts, for schedules to be written to a folder."""
_FILE = re.compile(r"\d+-(?P<operation>.+)-\d+-final_bundles\.txt")
_INSTRUCTION = re.compile(r"^ *(?:0x[0-9a-f]+|0) +(?P<mark>[A-Z]{2})?: (?P<depth>[ >]*)\{")
_LOOP_ENDS = re.compile(r"totalorder %\w+, (\d+) /\* loop exit test")


def read_schedules(folder: pathlib.Path) -> dict[str, int]:
    """{operation: how many instructions one run of it takes}, one a cycle; waiting for memory is not in it.

    The files are deleted, so that the next program may have operations of the same names.
    """
    found = {}
    for path in folder.iterdir():
        if (match := _FILE.fullmatch(path.name)) and "schedule-analysis" not in path.name:
            found[match["operation"]] = instructions(path.read_text(encoding="utf8", errors="replace"))
        path.unlink()
    return found


class _Loop:
    """An open loop, or the program around all: how deep it is, its instructions so far, how often it runs."""

    def __init__(self, depth: int):
        self.depth, self.count, self.runs = depth, 0, 0


def instructions(text: str) -> int:
    """How many instructions (bundles) a run of one operation takes.

    A loop begins at an instruction marked LB, and ends at the first branch after the comparison of its counter with a
    constant. One without, as the remainder of a copy has, counts once.
    """
    loops = [_Loop(0)]

    def close() -> None:
        loop = loops.pop()
        loops[-1].count += loop.count * max(loop.runs, 1)

    for line in text.splitlines():
        if (match := _INSTRUCTION.match(line)) is None:
            continue
        depth, ends = match["depth"].count(">"), _LOOP_ENDS.search(line)
        if match["mark"] == "LB" or ends:
            while loops[-1].depth > depth or (loops[-1].depth == depth > 0 and not ends):
                close()
        if match["mark"] == "LB":
            loops.append(_Loop(depth))
        loops[-1].count += 1
        if ends:
            loops[-1].runs = int(ends[1])
        if loops[-1].runs and "sbr.rel" in line and len(loops) > 1:
            close()
    while len(loops) > 1:
        close()
    return loops[0].count
