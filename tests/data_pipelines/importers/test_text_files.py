"""Heads of files of any size and encoding; files that are not what they should be."""

from __future__ import annotations

import pytest

from data_pipelines.builders.report import RawDataError
from data_pipelines.importers.text_files import files_below, read_text, read_yaml, starts_like, the_json_file


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_the_head_is_read_in_any_encoding(tmp_path, encoding):
    path = tmp_path / "a.json"
    path.write_text('  [{"ärger": 1}]' + " " * (1 << 17), encoding=encoding)
    assert starts_like(path, "ärger") and not starts_like(path, "other")


def test_the_only_json_file(tmp_path):
    assert the_json_file(tmp_path) is None
    path = tmp_path / "a.JSON"
    path.write_text("")
    assert the_json_file(path) == path and the_json_file(tmp_path / "b.json") is None
    (tmp_path / "b.json").write_text("")
    assert the_json_file(tmp_path) == tmp_path / "b.json"
    (tmp_path / "c.json").write_text("")
    assert the_json_file(tmp_path) is None


def test_what_cannot_be_read_names_the_file(tmp_path):
    for read in (read_text, read_yaml, lambda path: starts_like(path, "")):
        with pytest.raises(RawDataError, match="absent cannot be read: No such file"):
            read(tmp_path / "absent")
    (tmp_path / "a.yaml").write_text("- 1\n- 2\n")
    with pytest.raises(RawDataError, match="a.yaml does not hold a mapping but a list"):
        read_yaml(tmp_path / "a.yaml")


def test_files_below_links_and_in_capitals(tmp_path):
    """A folder of links to where the files lie, as people save room; a link to a folder around it ends nowhere."""
    for name in ("pool/a.json", "set/B.JSON", "set/.hidden/c.json", "set/._B.json", "set/b.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "pool")
    (tmp_path / "set" / "linked_again").symlink_to(tmp_path / "pool")
    (tmp_path / "set" / "around").symlink_to(tmp_path / "set")
    found = [path.relative_to(tmp_path).as_posix() for path in files_below(tmp_path / "set", ".json")]
    assert found == ["set/B.JSON", "set/linked/a.json"]
