"""Result tables: on the console, and as JSON, CSV and Markdown."""

from __future__ import annotations

import csv
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import rich.console
import rich.table

DETAILS = "metrics"
"""A row's field with every figure; it goes to the JSON file only."""


def show(rows: Sequence[Mapping[str, Any]], title: str = "") -> None:
    """Prints rows with the same fields as a table."""
    table = rich.table.Table(title=title)
    names = _columns(rows)
    for name in names:
        table.add_column("" if name.startswith("figure") else name, overflow="fold")
    for row in rows:
        table.add_row(*(str(row[name]) for name in names))
    rich.console.Console(width=140).print(table)


def save(rows: Sequence[Mapping[str, Any]], path: str | pathlib.Path) -> None:
    """Writes `path`.json (with every figure), .csv and .md."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    names = _columns(rows)
    path.with_suffix(".json").write_text(json.dumps(list(rows), indent=1), encoding="utf8")
    with path.with_suffix(".csv").open("w", newline="", encoding="utf8") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(str(row[name]) for name in names) + " |" for row in rows]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf8")


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [name for name in rows[0] if name != DETAILS]
