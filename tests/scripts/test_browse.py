"""Contact sheets show what is annotated, what is trained on and what is asked for, where it is."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from data_pipelines.builders.synthetic import prepare_synthetic
from pose_common.evaluation import draw
from scripts import browse, prepare_data
from tests.data_pipelines import tiny_sets

pytestmark = pytest.mark.slow  # renders datasets

CROWD = "synthetic_crowd"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    prepare_synthetic(path, [CROWD, "synthetic_mpii"], num_train=0, num_val=3)
    return path


@pytest.mark.parametrize("dataset", [CROWD, "synthetic_mpii"])
def test_three_sheets(data_dir, tmp_path, capsys, dataset):
    assert browse.main([dataset, f"--data_dir={data_dir}", f"--out={tmp_path}", "--count=4"]) == 0
    printed = capsys.readouterr().out.split()
    assert [path.rsplit("_", 1)[1] for path in printed] == ["raw.png", "crops.png", "targets.png"]
    raw, crops, targets = map(cv2.imread, printed)
    assert crops.shape == targets.shape and raw.shape[1] > browse.RAW_SIDE
    assert (crops != targets).any()


def test_raw_pictures_show_boxes_and_masks(data_dir):
    opened = browse._Opened(CROWD, "val", data_dir, (96, 128))
    columns = opened.annotations
    row = int(columns.image_index[[bool(text) for text in columns.mask]][0])
    shown = opened.raw(row).astype(int)
    assert max(shown.shape) == browse.RAW_SIDE
    for colour in (browse._YELLOW, browse._WHITE, draw.LEFT, draw.RIGHT):
        assert (abs(shown - colour).max(axis=-1) < 20).any(), colour
    columns.mask[:] = ""
    assert (shown != opened.raw(row)).any(axis=-1).mean() > 0.003, "a distant crowd is tinted"


def test_a_picture_too_thin_to_be_shrunk_is_shown(tmp_path):
    kind = {"id": 1, "name": "line", "keypoints": ["start", "end"]}
    entry = {"id": 1, "image_id": 1, "bbox": [0, 0, 3000, 2], "keypoints": [5, 1, 2, 2900, 1, 2]}
    document = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [entry], "categories": [kind]}
    (tmp_path / "labels.json").write_text(json.dumps(document))
    cv2.imwrite(str(tmp_path / "a.png"), np.full((2, 3000, 3), 128, np.uint8))
    command = ["custom", "--name=lines", f"--annotations={tmp_path / 'labels.json'}", f"--data_dir={tmp_path}"]
    assert prepare_data.main(command) == 0
    assert browse.main(["lines", f"--data_dir={tmp_path}", f"--out={tmp_path}"]) == 0


def test_targets_peak_at_the_keypoints(data_dir):
    opened = browse._Opened(CROWD, "val", data_dir, (96, 128))
    crops = opened.crops(range(4), np.random.default_rng(0))
    crops = [crop | {"image": np.zeros_like(crop["image"])} for crop in crops]
    for crop, shown in zip(crops, opened.targets(crops), strict=True):
        inside = (crop["visible"] > 0) & (crop["keypoints"] > 8).all(1) & (crop["keypoints"] < (88, 120)).all(1)
        for x, y in np.rint(crop["keypoints"][inside]).astype(int):
            assert shown[y, x, 0] > 60, "red where the map is high"  # a cell is four pixels wide


def test_pictures_without_people_have_the_raw_sheet_only(tmp_path, capsys):
    content = tiny_sets.document(2) | {"annotations": []}
    tiny_sets.write_coco(tmp_path / "raw", content)
    data = tmp_path / "data"
    assert prepare_data.main(["coco", f"--raw_dir={tmp_path / 'raw'}", f"--data_dir={data}", "--split=val"]) == 0
    capsys.readouterr()
    assert browse.main(["coco", f"--data_dir={data}", f"--out={tmp_path}"]) == 0
    assert [path.rsplit("_", 1)[1] for path in capsys.readouterr().out.split()] == ["raw.png"]


def test_arguments_that_cannot_be(data_dir, tmp_path, capsys):
    for wrong in (["--count=0"], ["--input_size", "0", "128"]):
        with pytest.raises(SystemExit):
            browse.main([CROWD, f"--data_dir={data_dir}", *wrong])
        assert "0 is not above 0" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert browse.main([CROWD, f"--data_dir={data_dir}", "--count=1", f"--out={tmp_path / 'file' / 'out'}"]) == 1
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("dataset, said", [("coco", "scripts.prepare_data coco"), ("nobodys", "unknown dataset")])
def test_what_is_not_there_is_said(tmp_path, capsys, dataset, said):
    assert browse.main([dataset, f"--data_dir={tmp_path}"]) == 1
    assert said in capsys.readouterr().err


def test_a_single_keypoint_is_shown(tmp_path):
    """Of which there are no clusters to learn, but that is for a training to say."""
    kind = {"id": 1, "name": "tip", "keypoints": ["tip"]}
    entry = {"id": 1, "image_id": 1, "bbox": [2, 2, 30, 20], "keypoints": [5, 8, 2]}
    document = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [entry], "categories": [kind]}
    (tmp_path / "labels.json").write_text(json.dumps(document))
    cv2.imwrite(str(tmp_path / "a.png"), np.full((32, 48, 3), 128, np.uint8))
    command = ["custom", "--name=tips", f"--annotations={tmp_path / 'labels.json'}", f"--data_dir={tmp_path}"]
    assert prepare_data.main(command) == 0
    assert browse.main(["tips", f"--data_dir={tmp_path}", f"--out={tmp_path}"]) == 0
