"""What --help says: the commands that people need, the flags, and every setting with its value and its comment."""

from __future__ import annotations

import pathlib
import re
import textwrap
from collections.abc import Iterable

from absl import flags
from ml_collections import ConfigDict

from pose_common.training.checks import leaves

_SETTING = re.compile(r"config\.([\w.]+)|^\s*\"(\w+)\":")
_HEADING = re.compile(r"^[A-Z]\w+\.\s*")
WIDTH = 120


def usage(program: str, flag_module: str, config: ConfigDict, files: Iterable[pathlib.Path]) -> str:
    """The text.

    Args:
      program: docstring of the program, with its commands.
      flag_module: module that defines the flags.
      config: whose settings are shown.
      files: configurations whose source has the comments, those of the most special one first.
    """
    said = comments(files)
    tables: set[str] = set()  # whose first entry, at which the comment of the whole table stands, was shown
    lines = [program.strip(), "", "Flags:"]
    for flag in sorted(flags.FLAGS.flags_by_module_dict().get(flag_module, ()), key=lambda flag: flag.name):
        lines.append(f"  --{flag.name}: {flag.help}")
    lines += ["", "Settings, each of which --config.<name>=... changes:"]
    for name, value in leaves(config):
        table, _, entry = name.rpartition(".")
        table = table.partition("[")[0]  # of a list's row the list
        comment = said.get(name) or said.get(entry) or ("" if table in tables else said.get(table, ""))
        tables.add(table)
        lines += textwrap.wrap(
            f"{name} = {value!r}" + (f"  # {comment}" if comment else ""), WIDTH, subsequent_indent=" " * 8
        )
    return "\n".join(lines)


def comments(files: Iterable[pathlib.Path]) -> dict[str, str]:
    """Name of a setting (of an entry of a table: its last part) -> the comment beside or above it; the first file that
    has one says it.
    """
    found: dict[str, str] = {}
    for file in files:
        above: list[str] = []
        for line in file.read_text(encoding="utf8").splitlines():
            code, _, beside = line.partition("  # ")
            if line.strip().startswith("#"):
                above.append(line.strip().lstrip("# "))
                continue
            for dotted, key in _SETTING.findall(code.partition(" = ")[0]):
                if text := _HEADING.sub("", " ".join(above + [beside] * bool(beside))):
                    found.setdefault(dotted or key, text)
            above = []
    return found
