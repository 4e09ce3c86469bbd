"""What the documents name exists."""

from __future__ import annotations

import dataclasses
import pathlib
import re

import pytest

from boir_jax.losses import LossConfig
from boir_jax.proposals import ProposalConfig
from data_pipelines.top_down.augmentation import Augmentation as CropAugmentation
from posebh_jax.clusters import ClusterConfig
from posebh_jax.prototypes import PrototypeConfig

ROOT = pathlib.Path(__file__).resolve().parents[1]
SECTIONS = {"PoseBH": "posebh_jax", "BoIR": "boir_jax"}
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")),
)
FOLDERS = ("boir_jax", "configs", "data_pipelines", "docs", "pose_common", "posebh_jax", "scripts", "tests")


def words_of(document: str) -> str:
    """The text in one line, so that nothing is missed where a line ends."""
    return " ".join((ROOT / document).read_text(encoding="utf8").split())


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


def headings(document: pathlib.Path) -> set[str]:
    """Names by which links lead to the headings of a document, as GitHub makes them."""
    lines = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.strip().lower()).replace(" ", "-") for line in lines}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_of_documents_lead_somewhere(document):
    for file, heading in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", words_of(document)):
        target = (ROOT / document).parent / file if file else ROOT / document
        assert target.exists(), file
        assert not heading or heading in headings(target), f"{file}#{heading}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_rows_of_tables_have_the_cells_of_their_heads(document):
    """More are not shown."""
    for table in re.findall(r"(?:^\|.*\n?)+", (ROOT / document).read_text(encoding="utf8"), re.MULTILINE):
        head, *rows = table.splitlines()
        assert [row for row in rows if row.count("|") != head.count("|")] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_paths_that_documents_name_exist(document):
    """Those in commands, too. Test files may be named from the folder `tests` on."""
    for path in re.findall(rf"(?<![\w/.-])(?:{'|'.join(FOLDERS)})/[\w/.-]*\w", words_of(document)):
        assert (ROOT / path).exists() or (ROOT / "tests" / path).exists(), path


@pytest.mark.parametrize("document", DOCUMENTS)
def test_tests_that_documents_name_exist(document):
    """A file, a function, or with an ellipsis the beginning of a function's name."""
    files = list((ROOT / "tests").rglob("test_*.py"))
    functions = re.findall(r"def (test_\w+)", "".join(path.read_text(encoding="utf8") for path in files))
    known = {path.stem for path in files} | set(functions)
    for name, more in re.findall(r"\b(test_\w+)(…?)", words_of(document)):
        there = name in known or (more and any(other.startswith(name) for other in functions))
        assert there, name


@pytest.mark.parametrize("settings", [ClusterConfig, CropAugmentation, LossConfig, PrototypeConfig, ProposalConfig])
def test_the_numbers_of_a_run_are_in_its_configuration_alone(settings):
    """As docs/architecture.md has it: the dataclasses that hold them have no defaults."""
    fields = dataclasses.fields(settings)
    assert all(field.default is field.default_factory is dataclasses.MISSING for field in fields)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_names_are_in_the_files_that_documents_say(document):
    """As in "`A` and `B` in `folder/file.py`"."""
    for names, file in re.findall(r"((?:`\w+`(?:,| and) )*`\w+`) (?:in|of) `(\w+/[\w/]+\.py)`", words_of(document)):
        source = (ROOT / file).read_text(encoding="utf8")
        for name in re.findall(r"\w+", names.replace(" and ", " ")):
            assert re.search(rf"^(?:(?:def|class) {name}\b|{name}(?::| =))", source, re.MULTILINE), (name, file)
