"""What is particular to single datasets: joined parts, splits, projections, heads."""

from __future__ import annotations

import collections
import copy
import json
import pathlib

import numpy as np
import pytest
import scipy.io

from data_pipelines import records
from data_pipelines.builders import BUILDERS, apt36k
from data_pipelines.builders.interhand2d import InterHand2d
from data_pipelines.builders.mpii import HEAD_SIZE_FROM_BOX, HEAD_SIZE_FROM_JOINTS, Mpii
from data_pipelines.builders.pw3d import prepare_release
from data_pipelines.builders.raw_files import read_json
from data_pipelines.builders.report import RawDataError
from tests.data_pipelines import tiny_sets
from tests.golden_files import golden, golden_path


def test_wholebody_parts_are_joined_and_checked(tmp_path):
    parts = {"foot_kpts": 6, "face_kpts": 68, "lefthand_kpts": 21, "righthand_kpts": 21}
    content = tiny_sets.document(2)
    for entry in content["annotations"]:
        entry |= {part: [7.5, 8, 0.25] * count for part, count in parts.items()}
    content["annotations"][1]["face_kpts"] = [7, 8, 1] * 67
    content["annotations"][2].pop("lefthand_kpts")
    path = tiny_sets.write_coco(tmp_path, content)
    path.rename(path.with_name("coco_wholebody_val_v1.0.json"))
    summary = BUILDERS["coco_wholebody"]("val", raw_dir=tmp_path, data_dir=tmp_path / "data", progress=False).prepare()
    assert {reason: tally["examples"][0]["id"] for reason, tally in summary["dropped"]["instances"].items()} == {
        "wrong number of keypoints": 11,
        "missing field": 20,
    }
    table = records.load_annotations("coco_wholebody", "val", tmp_path / "data")
    assert table.keypoints.shape == (2, 133, 3)
    assert (table.keypoints[:, 17:] == np.float32([7.5, 8, 0.25])).all()


def test_wholebody_lists_that_are_missing_are_named(tmp_path):
    """As of COCO's own file; all in `keypoints`, as some tools write them, are as good as five lists."""
    content = tiny_sets.document(3)
    content["annotations"] = [tiny_sets.annotation(n, n) for n in (1, 2, 3)]
    content["annotations"][1] |= {"foot_kpts": [0] * 18, "face_kpts": [0] * 204, "lefthand_kpts": [0] * 63}
    content["annotations"][2]["keypoints"] += [0] * (399 - 51)
    path = tiny_sets.write_coco(tmp_path, content)
    path.rename(path.with_name("coco_wholebody_val_v1.0.json"))
    summary = BUILDERS["coco_wholebody"]("val", raw_dir=tmp_path, data_dir=tmp_path / "data", progress=False).prepare()
    assert summary["instances"] == 1 and summary["dropped"]["instances"]["missing field"]["count"] == 2
    told = summary["remarks"]["keypoint lists of parts missing"]["examples"]
    assert [example["id"] for example in told] == [1, 2]
    assert (
        told[0]["detail"].endswith("face_kpts, lefthand_kpts, righthand_kpts") and told[1]["detail"] == "righthand_kpts"
    )
    table = records.load_annotations("coco_wholebody", "val", tmp_path / "data")
    np.testing.assert_array_equal(table.keypoints[0, :17].ravel(), content["annotations"][0]["keypoints"])


def test_apt36k_split_is_the_authors():
    raw, expected = golden("data/prepro/apt36k_raw.json"), golden("data/prepro/apt36k_expected.json")
    for variant, whole_videos in (("released", False), ("fixed_unique_videos", True)):
        parts = apt36k.split_release(copy.deepcopy(raw), whole_videos)
        for split, part in expected[variant].items():
            assert [image["id"] for image in parts[split]["images"]] == part["images"], (variant, split)
            assert [entry["id"] for entry in parts[split]["annotations"]] == part["annotations"], (
                variant,
                split,
            )
    parts = apt36k.split_release(raw)
    train = parts["train"]
    assert {str(image["id"]): image["file_name"] for part in parts.values() for image in part["images"]} | expected[
        "file_names"
    ] == {str(image["id"]): image["file_name"] for part in parts.values() for image in part["images"]}
    assert [category["id"] for category in train["categories"]] == expected["category_order"]
    assert sorted(train) == expected["top_level_keys"]
    assert sorted(train["annotations"][0]) == expected["first_annotation_keys"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda images, place: images[place].pop("file_name"),
        lambda images, place: images[place].pop("video_id"),
        lambda images, place: images[place].update(file_name=7, video_id=None),
        lambda images, place: images.__setitem__(place, "junk"),
        lambda images, place: images.insert(place, dict(images[place])),
    ],
    ids=["name", "video", "both", "entry", "twice"],
)
def test_a_damaged_entry_of_apt36k_moves_nobody_to_another_split(damage):
    """But for the first frame of a clip, of which nothing else tells whose it is."""
    raw = golden("data/prepro/apt36k_raw.json")
    split_of = {i["id"]: split for split, part in apt36k.split_release(raw).items() for i in part["images"]}
    for place in range(1, len(raw["images"])):
        if raw["images"][place]["video_id"] != raw["images"][place - 1]["video_id"]:
            continue
        content = copy.deepcopy(raw)
        damage(content["images"], place)
        for split, part in apt36k.split_release(content).items():
            assert all(split_of[image["id"]] == split for image in part["images"]), (place, split)


def test_an_entry_of_apt36k_without_a_video_is_reported_with_every_split():
    raw = copy.deepcopy(golden("data/prepro/apt36k_raw.json"))
    raw["annotations"][0] = "junk"
    raw["annotations"][1]["video_id"] = 987654321  # its picture tells
    image = raw["annotations"][1]["image_id"]
    parts = apt36k.split_release(raw)
    assert all("junk" in part["annotations"] for part in parts.values())
    (split,) = [split for split, part in parts.items() if image in {i["id"] for i in part["images"]}]
    (found,) = [split for split, part in parts.items() if raw["annotations"][1]["id"] in ids_of(part["annotations"])]
    assert found == split


def ids_of(entries):
    return {entry["id"] for entry in entries if isinstance(entry, dict)}


@pytest.mark.parametrize("slash", ["\\", "/"])
def test_apt36k_builder_splits_the_release(tmp_path, slash):
    raw, expected = (
        copy.deepcopy(golden("data/prepro/apt36k_raw.json")),
        golden("data/prepro/apt36k_expected.json")["released"],
    )
    for image in raw["images"]:
        image["file_name"] = image["file_name"].replace("\\", slash)
    root = tmp_path / "ap36k"
    (root / "annotations").mkdir(parents=True)
    broken = copy.deepcopy(raw)
    del broken["images"][0]["video_id"]  # the frames keep their order otherwise
    (root / "annotations/apt36k_annotations.json").write_text(json.dumps(raw))
    for part in apt36k.split_release(raw).values():
        tiny_sets.write_pictures(root / "images", part["images"], noisy=False)
    for renamed in (root / "images/cat").glob("clip46*"):
        renamed.rename(renamed.with_name("clip46√"))  # an archive unpacked with the right encoding
    for split, part in expected.items():
        summary = BUILDERS["apt36k"](split, raw_dir=tmp_path, data_dir=tmp_path / "data", progress=False).prepare()
        table = records.load_annotations("apt36k", split, tmp_path / "data")
        assert table.image_id.tolist() == part["images"]
        assert sorted(table.id.tolist()) == part["annotations"]
        order = golden("data/prepro/apt36k_expected.json")["category_order"]
        assert [number for number, _ in table.categories] == order
        assert "sizes differ from the authors' split" in summary["remarks"]
    (root / "annotations/apt36k_annotations.json").write_text(json.dumps(broken))
    summary = BUILDERS["apt36k"]("val", raw_dir=tmp_path, data_dir=tmp_path / "damaged", progress=False).prepare()
    assert summary["dropped"]["images"]["bad image entry"]["examples"][0]["id"] == raw["images"][0]["id"]


def test_pw3d_release_is_prepared_by_the_authors_rule(tmp_path):
    expected = golden("data/prepro/pw3d_expected.json")
    path = golden_path("data/prepro/pw3d_raw.json")
    prepared = prepare_release(read_json(path))
    plain = {
        **prepared,
        "annotations": [entry | {"keypoints": entry["keypoints"].tolist()} for entry in prepared["annotations"]],
    }
    assert plain == expected
    assert prepare_release(plain) == plain  # prepared files pass unchanged

    tiny_sets.write_pictures(tmp_path, expected["images"], noisy=False)
    BUILDERS["pw3d"]("test", annotations=path, images=tmp_path, data_dir=tmp_path / "data", progress=False).prepare()
    table = records.load_annotations("pw3d", "test", tmp_path / "data")
    np.testing.assert_array_equal(
        table.keypoints,
        np.float32([entry["keypoints"] for entry in expected["annotations"]]).reshape(-1, 24, 3),
    )
    assert table.num_keypoints.tolist() == [entry["num_keypoints"] for entry in expected["annotations"]]


def test_interhand_projection_and_hands_on_recorded_scenes(tmp_path):
    """Boxes are float32 in the recording, joints rounded to 4 digits: 1e-3 pixels."""
    data = golden_path("data/eval/interhand2d_synth_data.json")
    expected = golden("data/eval/interhand2d_synth_expected.json")["instances"]
    tiny_sets.write_pictures(tmp_path, json.loads(data.read_text())["images"], noisy=False)
    InterHand2d("test", annotations=data, images=tmp_path, data_dir=tmp_path / "data", progress=False).prepare()
    table = records.load_annotations("interhand2d", "test", tmp_path / "data")
    assert table.image_id[table.image_index].tolist() == [entry["image_id"] for entry in expected]
    assert table.id.tolist() == list(range(len(expected)))
    np.testing.assert_allclose(table.box, [entry["bbox"] for entry in expected], atol=1e-3)
    np.testing.assert_allclose(table.keypoints[..., :2], [entry["joints"] for entry in expected], atol=1e-3)
    np.testing.assert_array_equal(table.keypoints[..., 2], [entry["visible"] for entry in expected])


def test_interhand_faults(tmp_path):
    source = golden_path("data/eval/interhand2d_synth_data.json")
    content = json.loads(source.read_text())
    for kind in ("camera", "joint_3d"):
        (tmp_path / f"hands_{kind}.json").write_bytes(source.with_name(f"interhand2d_synth_{kind}.json").read_bytes())
    tiny_sets.write_pictures(tmp_path, content["images"], noisy=False)
    images = {image["id"]: image for image in content["images"]}
    annotated = collections.Counter(entry["image_id"] for entry in content["annotations"])
    first, second, third, fourth = [number for number in images if annotated[number] == 1][:4]
    images[first]["camera"] = "nowhere"
    images[second]["frame_idx"] = -5
    (entry,) = (entry for entry in content["annotations"] if entry["image_id"] == third)
    entry["joint_valid"] = entry["joint_valid"][:-1]
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != fourth]
    path = tmp_path / "hands_data.json"
    path.write_text(json.dumps(content))
    summary = InterHand2d(
        "test", annotations=path, images=tmp_path, data_dir=tmp_path / "data", progress=False
    ).prepare()
    dropped = {
        example["id"]: reason for reason, tally in summary["dropped"]["images"].items() for example in tally["examples"]
    }
    expected = {
        first: "no camera or no joints",
        second: "no camera or no joints",
        third: "wrong length",
        fourth: "image without annotation",
    }
    assert {number: reason for number, reason in dropped.items() if number in expected} == expected


def _mpii(root: pathlib.Path, entries: list, split: str = "val", mat: bool = True) -> dict:
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / f"annotations/mpii_{split}.json").write_text(json.dumps(entries))
    if mat:
        (root / "annotations/mpii_gt_val.mat").write_bytes(golden_path("data/eval/mpii_synth_gt_val.mat").read_bytes())
    names = {entry["image"] for entry in entries if isinstance(entry, dict) and "image" in entry}
    tiny_sets.write_pictures(
        root / "images",
        [{"file_name": name, "width": 640, "height": 480, "id": 0} for name in names],
        noisy=False,
    )
    return Mpii(split, raw_dir=root, data_dir=root / "data", progress=False).prepare()


def test_mpii_people_become_zero_based_with_their_head_sizes(tmp_path):
    entries = golden("data/eval/mpii_synth_val.json")
    summary = _mpii(tmp_path, entries)
    table = records.load_annotations("mpii", "val", tmp_path / "data")
    assert summary["instances"] == len(entries) == table.num_instances
    order = np.argsort(table.id)
    assert table.id[order].tolist() == list(range(len(entries)))
    assert (np.diff(table.image_index) >= 0).all()
    joints = np.array([entry["joints"] for entry in entries])
    np.testing.assert_array_equal(table.keypoints[order][..., :2], (joints - 1).astype(np.float32))
    np.testing.assert_array_equal(table.keypoints[order][..., 2], [entry["joints_vis"] for entry in entries])
    names = [table.file_name[table.image_index[row]] for row in order]
    assert names == [entry["image"] for entry in entries]
    assert [int(name[:-4]) for name in names] == table.image_id[table.image_index[order]].tolist()

    boxes = scipy.io.loadmat(golden_path("data/eval/mpii_synth_gt_val.mat"))["headboxes_src"].astype(float)
    np.testing.assert_allclose(table.head_size[order], 0.6 * np.linalg.norm(boxes[1] - boxes[0], axis=0), rtol=1e-6)
    assert table.metadata["head_size"] == HEAD_SIZE_FROM_BOX
    # The square is the one that the protocols crop: 1.25 scale, moved down by 15 scale units; both unless x
    # is -1.
    centre, scale = (np.array([entry[key] for entry in entries]) for key in ("center", "scale"))
    known = centre[:, 0] != -1
    np.testing.assert_allclose(table.scale[order], np.where(known, 1.25, 1) * scale, rtol=1e-6)
    np.testing.assert_allclose(table.centre[order], centre + np.outer(15 * scale * known, [0, 1]) - 1, atol=1e-3)
    np.testing.assert_allclose(table.box[order][:, :2] + table.box[order][:, 2:] / 2, table.centre[order], atol=1e-3)


def test_mpii_without_mat_measures_heads_by_joints(tmp_path):
    entries = golden("data/eval/mpii_synth_val.json")
    _mpii(tmp_path, entries, mat=False)
    table = records.load_annotations("mpii", "val", tmp_path / "data")
    assert table.metadata["head_size"] == HEAD_SIZE_FROM_JOINTS
    both = (table.keypoints[:, [8, 9], 2] > 0).all(axis=1)
    lengths = np.linalg.norm(table.keypoints[:, 9, :2] - table.keypoints[:, 8, :2], axis=1)
    np.testing.assert_allclose(table.head_size, np.where(both, lengths, 0), rtol=3e-6)
    assert both.any()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"version https://git-lfs.github.com/spec/v1",
        b"<html>",
        b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM\x0e\x00",
        b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM\x89HDF",
        {"annolist": np.zeros(3)},
        {"headboxes_src": "no numbers"},
    ],
    ids=["empty", "Git LFS", "web page", "cut", "version 7.3", "another", "text"],
)
def test_mpii_head_boxes_that_are_none_name_their_file(tmp_path, content):
    mat = tmp_path / "annotations/mpii_gt_val.mat"
    mat.parent.mkdir()
    scipy.io.savemat(mat, content) if isinstance(content, dict) else mat.write_bytes(content)
    with pytest.raises(RawDataError, match=r"mpii_gt_val\.mat gives no head boxes .*headboxes_src"):
        _mpii(tmp_path, golden("data/eval/mpii_synth_val.json")[:1], mat=False)


def test_mpii_faults_and_test_set(tmp_path):
    entries = copy.deepcopy(golden("data/eval/mpii_synth_val.json")[:8])
    entries[0]["scale"] = -1
    entries[1]["joints"] = entries[1]["joints"][:-1]
    entries[2]["center"] = [float("nan"), 3]
    del entries[3]["image"]
    entries[4] = "person"
    summary = _mpii(tmp_path, entries, mat=False)
    dropped = {
        example["id"]: reason
        for reason, tally in summary["dropped"]["instances"].items()
        for example in tally["examples"]
    }
    assert dropped == {
        0: "number out of range",
        1: "wrong length",
        2: "not finite",
        3: "missing field",
        4: "missing field",
    }
    assert summary["instances"] == 3
    with pytest.raises(RawDataError, match="head boxes of shape"):
        _mpii(tmp_path / "other", entries)

    for entry in entries[5:]:
        del entry["joints"], entry["joints_vis"]
    summary = _mpii(tmp_path / "test", entries[5:], split="test", mat=False)
    assert summary["instances"] == summary["without_keypoints"] == 3
