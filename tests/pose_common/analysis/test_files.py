"""What an evaluation leaves behind: documents that say what the arrays do, and pictures with points in their place."""

from __future__ import annotations

import base64
import dataclasses
import json

import cv2
import numpy as np
import pytest

from pose_common.analysis import errors as kinds
from pose_common.analysis import gallery
from pose_common.analysis.files import write_analysis
from pose_common.analysis.measure import analyse
from tests.pose_common.analysis.cases import COCO, HEIGHT, WIDTH, Gradient, crowded, inside


def decoded(item) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(base64.b64decode(item["picture"]), np.uint8), cv2.IMREAD_COLOR)


def make(seed: int, count: int = 8):
    truth, poses = crowded(seed)
    truth = inside(truth)
    document, pairs, errors = analyse(COCO, truth, poses, by_instance=True)
    made = gallery.make_gallery(Gradient(truth), COCO.keypoints, truth, poses, pairs, errors, count)
    return truth, poses, pairs, errors, made


def test_points_lie_where_the_picture_shows_them():
    truth, _, _, _, made = make(0)
    checked = 0
    for item in made["items"]:
        picture = decoded(item)
        assert picture.shape == (item["height"], item["width"], 3) and max(picture.shape) <= gallery.LONGEST_SIDE
        person = truth.keypoints[truth.id.tolist().index(item["id"])]
        for (x, y, _), (u, v, seen) in zip(person, item["truth"], strict=True):
            column, row = round(u), round(v)
            if seen and 0 <= column < item["width"] and 0 <= row < item["height"]:
                blue, green, _ = picture[row, column].astype(float)
                # A tenth of a pixel, rounding of two JPEG files, up to half a pixel of a part that was made smaller.
                assert blue == pytest.approx(250 * x / (WIDTH - 1), abs=4), (item["id"], x)
                assert green == pytest.approx(250 * y / (HEIGHT - 1), abs=4), (item["id"], y)
                checked += 1
    assert checked > 50


def test_the_whole_box_is_shown():
    """Also of somebody with a single labelled keypoint, whom nobody found."""
    truth, poses = crowded(0)
    truth = inside(truth)
    truth.keypoints[:, 1:, 2] = 0
    poses = poses.take(np.zeros(0, np.int64))
    _, pairs, errors = analyse(COCO, truth, poses, by_instance=True)
    made = gallery.make_gallery(Gradient(truth), COCO.keypoints, truth, poses, pairs, errors, 8)
    assert made["items"]
    for item in made["items"]:
        x, y, width, height = truth.box[truth.id.tolist().index(item["id"])]
        picture = decoded(item).astype(float)
        columns, rows = picture[..., 0] * (WIDTH - 1) / 250, picture[..., 1] * (HEIGHT - 1) / 250
        assert columns.min() < max(x, 0) + 4 and columns.max() > min(x + width, WIDTH - 1) - 4
        assert rows.min() < max(y, 0) + 4 and rows.max() > min(y + height, HEIGHT - 1) - 4


def test_items_say_what_the_arrays_say():
    truth, poses, pairs, errors, made = make(1)
    row_of = dict(zip(truth.id[pairs.annotation].tolist(), range(len(pairs.annotation)), strict=True))
    not_found = 0
    for item in made["items"]:
        if item["id"] not in row_of:
            not_found += 1
            assert item["pose"] is item["oks"] is item["kinds"] is None
            continue
        row = row_of[item["id"]]
        assert item["kinds"] == errors.kind[row].tolist()
        assert item["score"] == pytest.approx(poses.score[pairs.pose[row]], abs=1e-4)
        assert len(item["pose"]) == len(item["truth"]) == len(made["keypoints"]) == 17
    assert not_found, "somebody without a pose is shown as well"
    json.dumps(made, allow_nan=False)


@pytest.mark.parametrize("count", [4, 12])
def test_the_choice_is_bounded_and_has_the_worst_and_every_kind(count):
    truth, poses, pairs, errors, made = make(2, count)
    nobody = dataclasses.replace(poses.take(np.arange(3)), instance_id=np.array([-1, -2, -3]))
    more = kinds.Poses(
        **{
            field.name: np.concatenate([getattr(poses, field.name), getattr(nobody, field.name)])
            for field in dataclasses.fields(poses)
        }
    )
    cases = gallery.choose(truth, more, pairs, errors, count)
    assert len(cases) <= 4 * count
    shown = {case.person for case in cases}
    worst = np.argsort(gallery.person_oks(errors))[:count]
    assert set(pairs.annotation[worst].tolist()) <= shown
    found = {int(kind) for case in cases if case.errors >= 0 for kind in errors.kind[case.errors]}
    assert found >= {kinds.JITTER, kinds.INVERSION, kinds.SWAP, kinds.MISS}
    assert [case for case in cases if case.pose < 0], "somebody without a pose"
    extra = [case.pose for case in cases if case.person < 0]
    assert len(extra) == min(count // 4, 3) and min(extra) >= len(poses)


def test_a_pose_far_away_does_not_shrink_the_person_to_a_dot():
    truth, poses = crowded(0)
    truth = inside(truth)
    far = dataclasses.replace(poses, keypoints=poses.keypoints + np.array([1e5, 1e5, 0]))
    _, pairs, errors = analyse(COCO, truth, far, by_instance=True)
    made = gallery.make_gallery(Gradient(truth), COCO.keypoints, truth, far, pairs, errors, 4)
    for item in made["items"]:
        points = np.array([point[:2] for point in item["truth"] if point[2]])
        if len(points) > 5:
            assert np.ptp(points, axis=0).max() > 0.1 * max(item["width"], item["height"])


def test_files_are_written_and_the_row_is_short(tmp_path):
    truth, poses = crowded(0)
    truth = inside(truth)
    about = {"step": 3, "split": "val", "maps": "heads"}
    row = write_analysis(
        tmp_path, "coco_heads", about, Gradient(truth), truth, poses, COCO, by_instance=True, pictures=4
    )
    document = json.loads((tmp_path / "results/step_3/analysis/coco_heads.json").read_text())
    assert document["step"] == 3 and document["worst"][0]["file"].endswith(".jpg")
    assert row["found"] == f"{document['people']['found']}/{document['people']['labelled']}"
    share = 100 * document["total"]["miss"] / document["total"]["labelled"]
    assert row["miss"].startswith(f"{share:.1f}")
    table = (tmp_path / "results/step_3/analysis/coco_heads.md").read_text().splitlines()
    assert len(table) == 2 + 17 and "left_wrist" in table[11]
    made = json.loads((tmp_path / "gallery/coco_heads.json").read_text())
    assert made["step"] == 3 and made["keypoints"] == list(COCO.keypoints.keypoints) and made["items"]
    assert not list(tmp_path.rglob("*.partial"))
    sheet = cv2.imread(str(tmp_path / "pictures/coco_heads_worst.png"))
    assert sheet.shape[1] > 4 * gallery.LONGEST_SIDE, "four pairs in a row"


def test_nobody_found_makes_no_sheet(tmp_path):
    truth, poses = crowded(0)
    truth, nobody = inside(truth), poses.take(np.zeros(0, np.int64))
    row = write_analysis(tmp_path, "x", {"step": 0}, Gradient(truth), truth, nobody, COCO, by_instance=True, pictures=4)
    assert row["found"].startswith("0/") and not (tmp_path / "pictures").exists()
    assert all(item["pose"] is None for item in json.loads((tmp_path / "gallery/x.json").read_text())["items"])


def test_a_split_without_annotations_leaves_nothing(tmp_path):
    truth, poses = crowded(0)
    empty = {"image", "id", "category", "keypoints", "box", "area", "crowd", "num_keypoints", "head_size"}
    truth = dataclasses.replace(truth, **{name: getattr(truth, name)[:0] for name in empty})
    row = write_analysis(tmp_path, "x", {"step": 0}, Gradient(truth), truth, poses, COCO, by_instance=True, pictures=4)
    assert row == {} and not list(tmp_path.iterdir())
