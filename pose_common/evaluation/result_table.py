"""Result tables: on the console, and as JSON, CSV and Markdown."""

from __future__ import annotations

import csv
import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import rich.console
import rich.markup
import rich.table

from data_pipelines.paths import as_path, write_whole

DETAILS = "metrics"
"""A row's field with every figure; it goes to the JSON file only."""
NOTES = "notes"
"""A row's field with a list of texts; they stand under the table, numbered."""


def show(rows: Sequence[Mapping[str, Any]], title: str = "", remarks: Sequence[str] = ()) -> None:
    """Prints rows with the same fields as a table, remarks under it."""
    console = rich.console.Console(width=160, highlight=False)
    rows, remarks = _with_footnotes(rows, remarks)
    if rows:
        table = rich.table.Table(title=title)
        names = _columns(rows)
        for name in names:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*(rich.markup.escape(str(row[name])) for name in names))
        console.print(table)
    for remark in remarks:
        console.print(rich.markup.escape(remark), soft_wrap=True)


def save(rows: Sequence[Mapping[str, Any]], path: str | pathlib.Path, remarks: Sequence[str] = ()) -> None:
    """Writes `path`.json ({"rows": with every figure, "remarks"}), .csv (rows) and .md (rows and remarks)."""
    path = as_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"rows": list(rows), "remarks": list(remarks)}
    write_whole(path.with_suffix(".json"), json.dumps(document, indent=1))
    names = _columns(rows)
    with io.StringIO(newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows({**row, NOTES: "; ".join(row[NOTES])} if NOTES in row else row for row in rows)
        write_whole(path.with_suffix(".csv"), file.getvalue())
    write_whole(path.with_suffix(".md"), markdown(rows, remarks))


def markdown(rows: Sequence[Mapping[str, Any]], remarks: Sequence[str] = ()) -> str:
    """Rows with the same fields as a table, remarks under it."""
    rows, remarks = _with_footnotes(rows, remarks)
    names = _columns(rows)
    lines = [_markdown_row(names), "|" + "---|" * len(names)] if rows else []
    lines += [_markdown_row(row[name] for name in names) for row in rows]
    lines += ["", *(f"- {' '.join(remark.split())}" for remark in remarks)] if remarks else []
    return "\n".join(lines) + "\n"


def _with_footnotes(rows: Sequence[Mapping[str, Any]], remarks: Sequence[str]) -> tuple[list, list[str]]:
    """Rows with the numbers of their notes instead of the notes, and these before the remarks."""
    texts = list(dict.fromkeys(note for row in rows for note in row.get(NOTES, ())))
    numbered = [
        {**row, NOTES: ", ".join(str(1 + texts.index(note)) for note in row[NOTES])} if NOTES in row else row
        for row in rows
    ]
    return numbered, [*(f"({number}) {text}" for number, text in enumerate(texts, 1)), *remarks]


def _markdown_row(cells) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [name for name in rows[0] if name != DETAILS] if rows else []
