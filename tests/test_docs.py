"""What the documents name exists."""

from __future__ import annotations

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
SECTIONS = {"PoseBH": "posebh_jax", "BoIR": "boir_jax"}


def named_functions() -> list[tuple[str, str]]:
    """(file, name) of every function that docs/formulas.md names, by its sections."""
    found, package = [], None
    for line in (ROOT / "docs/formulas.md").read_text(encoding="utf8").splitlines():
        if line.startswith("## "):
            package = next((folder for title, folder in SECTIONS.items() if title in line), None)
        if package is None or not line.startswith("| ") or line.startswith("| paper"):
            continue
        file = None
        for text in re.findall(r"`([^`]+)`", line.split("|")[3]):
            path, _, name = text.rpartition(": ")
            file = path or file
            if file and name and not name.endswith((".py", "/")):
                found.append((file if "/" in file and (ROOT / file).exists() else f"{package}/{file}", name))
    return found


@pytest.mark.parametrize("file, name", named_functions())
def test_formulas_are_where_the_document_says(file, name):
    source = (ROOT / file).read_text(encoding="utf8")
    assert re.search(rf"^\s*(?:def|class) {name.split('.')[-1]}\b", source, re.MULTILINE)


@pytest.mark.parametrize("document", sorted(path.name for path in (ROOT / "docs").glob("*.md")))
def test_links_of_documents_lead_somewhere(document):
    text = (ROOT / "docs" / document).read_text(encoding="utf8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / "docs" / target).exists(), target
