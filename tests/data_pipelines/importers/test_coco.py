"""COCO's own format: which file of a folder, and where its pictures lie."""

from __future__ import annotations

import json

import pytest

from data_pipelines.builders.report import NoAnnotations, RawDataError
from data_pipelines.importers import coco


def test_the_only_file_of_a_folder_and_its_pictures(tmp_path):
    with pytest.raises(RawDataError, match="has no JSON file, or several"):
        coco.read(tmp_path)
    with pytest.raises(NoAnnotations, match="looked for .*absent.json"):
        coco.read(tmp_path / "absent.json")
    content = {"images": [], "annotations": []}
    (tmp_path / "labels.json").write_text(json.dumps(content))
    found = coco.read(tmp_path)
    assert found.document == content and found.images == tmp_path
    (tmp_path / "images").mkdir()
    assert coco.read(tmp_path / "labels.json").images == tmp_path / "images"
    assert coco.read(tmp_path, tmp_path).images == tmp_path
