"""Records hold what the annotation files hold, and give it back."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import io
import json
import os
import pickle
from contextlib import redirect_stdout

import numpy as np
import pytest
import tensorflow_datasets as tfds
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from data_pipelines import records
from data_pipelines.builders import BUILDERS
from data_pipelines.datasets import find_dataset
from pose_common.metrics import evaluate
from pose_common.metrics.columns import ground_truth
from tests.data_pipelines import tiny_sets
from tests.golden_files import golden, golden_path, shared_path
from tests.pose_common.metrics.cases import recorded_poses, settings_of
from tests.settings import POSES

# Dataset -> annotation file and picture folder among the samples.
SAMPLES = {
    "coco": ("coco/test_coco.json", "coco"),
    "coco_wholebody": ("coco/test_coco_wholebody.json", "coco"),
    "aic": ("aic/test_aic.json", "aic"),
    "mpii": ("mpii/test_mpii.json", "mpii"),
    "ap10k": ("ap10k/test_ap10k.json", "ap10k"),
    "crowdpose": ("crowdpose/test_crowdpose.json", "crowdpose"),
    "ochuman": ("ochuman/test_ochuman.json", "ochuman"),
    "halpe": ("halpe/test_halpe.json", "coco"),
    "interhand2d": ("interhand2.6m/test_interhand2.6m_data.json", "interhand2.6m"),
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def _prepared(dataset, data_dir, annotations, images, split="sample") -> records.Annotations:
    if not records.is_prepared(dataset, split, data_dir):
        summary = BUILDERS[dataset](
            split, annotations=annotations, images=images, data_dir=data_dir, progress=False, strict=True
        ).prepare()
        assert summary["dropped"] == {"images": {}, "instances": {}}
    return records.load_annotations(dataset, split, data_dir)


def _sample(dataset: str, data_dir) -> records.Annotations:
    annotations, images = (shared_path(f"samples/{path}") for path in SAMPLES[dataset])
    return _prepared(dataset, data_dir, annotations, images)


def test_pictures_are_stored_byte_for_byte(tmp_path):
    """Also with bytes behind the end marker, which text fields of other formats would cut."""
    path = tiny_sets.write_coco(tmp_path, tiny_sets.document())
    picture = tmp_path / "coco/val2017/000000000002.jpg"
    picture.write_bytes(picture.read_bytes() + b"\0\0\n\0")
    _prepared("coco", tmp_path, path, picture.parent)
    source = records.open_records("coco", "sample", tmp_path)
    assert len(source) == 4
    for index in range(4):
        stored = (picture.parent / source[index]["file_name"]).read_bytes()
        assert source[index]["image"] == source.image(index) == stored


@pytest.mark.parametrize("dataset", SAMPLES)
def test_table_and_records_agree(dataset, data_dir):
    table = _sample(dataset, data_dir)
    source = records.open_records(dataset, "sample", data_dir)
    fields = records.instance_fields(find_dataset(dataset).num_keypoints)
    assert len(source) == table.num_images
    for row in range(len(source)):
        record, rows = source[row], np.flatnonzero(table.image_index == row)
        for name in ("image_id", "file_name", "height", "width", "crowd_index"):
            assert record[name] == getattr(table, name)[row]
        for name, (dtype, shape) in fields.items():
            values = record["instances"][name]
            assert values.shape == (len(rows), *shape)
            assert values.dtype == (object if dtype is str else dtype)
            np.testing.assert_array_equal(values, getattr(table, name)[rows])


def _assert_number_lists_equal(ours: dict, theirs: dict, *keys: str) -> None:
    assert ours.keys() & set(keys) == theirs.keys() & set(keys)
    for key in ours.keys() & set(keys):
        np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-6, err_msg=key)


@pytest.mark.parametrize("dataset", [name for name in SAMPLES if name not in ("mpii", "interhand2d")])
def test_coco_document_equals_the_annotation_file(dataset, data_dir):
    """Numbers pass through float32; nothing else may differ."""
    original = json.loads(shared_path(f"samples/{SAMPLES[dataset][0]}").read_text())
    document = _sample(dataset, data_dir).to_coco()
    assert [image["id"] for image in document["images"]] == [image["id"] for image in original["images"]]
    for ours, theirs in zip(document["images"], original["images"], strict=True):
        assert {key: theirs[key] for key in ("file_name", "height", "width")} == {
            key: ours[key] for key in ("file_name", "height", "width")
        }
        _assert_number_lists_equal(ours, theirs, "crowdIndex")
    assert [(entry["id"], entry["name"]) for entry in document["categories"]] == [
        (entry["id"], entry["name"]) for entry in original["categories"]
    ]
    theirs_by_id = {entry["id"]: entry for entry in original["annotations"]}
    assert len(document["annotations"]) == len(theirs_by_id)
    for ours in document["annotations"]:
        theirs = {"iscrowd": 0} | theirs_by_id[ours["id"]]
        for key in ("image_id", "category_id", "iscrowd", "num_keypoints"):
            assert ours[key] == theirs[key], key
        _assert_number_lists_equal(
            ours,
            theirs,
            "area",
            "bbox",
            "keypoints",
            "foot_kpts",
            "face_kpts",
            "lefthand_kpts",
            "righthand_kpts",
        )
        if not ours["num_keypoints"] or ours["iscrowd"]:
            assert ours.get("segmentation") == theirs.get("segmentation")


@pytest.mark.parametrize("dataset", [name for name in SAMPLES if name not in ("mpii", "interhand2d")])
def test_loaders_entries_come_from_the_table(dataset, data_dir):
    """The reference loader's people, in its order: joints, visibility and (where kept) cleaned boxes."""
    with np.load(shared_path("golden/data/db.npz")) as archive:
        expected = {key.rsplit("/")[-1]: archive[key] for key in archive.files if key.startswith(f"{dataset}/test/")}
    table = _sample(dataset, data_dir)
    counted = table.num_keypoints != 0
    if find_dataset(dataset).drop_unlabelled_by == "visibility":
        counted = np.ones_like(counted)
    rows = np.flatnonzero(~table.crowd & counted & (table.keypoints != 0).any(axis=(1, 2)))
    assert table.file_name[table.image_index[rows]].tolist() == expected["image"].tolist()
    np.testing.assert_allclose(table.keypoints[rows, :, :2], expected["joints_3d"], atol=1e-3)
    visible = table.keypoints[rows, :, 2]
    visible = visible > 0 if dataset == "coco_wholebody" else np.minimum(visible, 1)
    np.testing.assert_allclose(visible, expected["joints_3d_visible"], atol=1e-6)
    if "bbox" in expected:
        box = table.box[rows].astype(np.float64)
        size = np.stack([table.width, table.height], axis=1)[table.image_index[rows]]
        first = np.maximum(box[:, :2], 0)
        last = np.minimum(size - 1, first + np.maximum(0, box[:, 2:] - 1))
        np.testing.assert_allclose(np.concatenate([first, last - first], axis=1), expected["bbox"], atol=1e-3)


def test_mpii_sample_has_the_protocols_centre_and_scale(data_dir):
    with np.load(shared_path("golden/data/db.npz")) as archive:
        expected = {key.rsplit("/")[-1]: archive[key] for key in archive.files if key.startswith("mpii/train/")}
    table = _sample("mpii", data_dir)
    assert table.file_name[table.image_index].tolist() == expected["image"].tolist()
    np.testing.assert_allclose(table.centre, expected["center"], atol=1e-3)
    np.testing.assert_allclose(table.scale, expected["scale"][:, 0], atol=1e-5)
    np.testing.assert_allclose(table.keypoints[..., :2], expected["joints_3d"], atol=1e-3)
    np.testing.assert_array_equal(table.keypoints[..., 2], expected["joints_3d_visible"])
    assert (table.head_size > 0).all()


def test_interhand_sample_has_the_loaders_hands(data_dir):
    with np.load(shared_path("golden/data/db.npz")) as archive:
        expected = {key.rsplit("/")[-1]: archive[key] for key in archive.files if key.startswith("interhand2d/test/")}
    table = _sample("interhand2d", data_dir)
    assert table.file_name[table.image_index].tolist() == expected["image"].tolist()
    assert table.id.tolist() == expected["bbox_id"].tolist()
    np.testing.assert_allclose(table.box, expected["bbox"], atol=1e-3)
    np.testing.assert_array_equal(table.keypoints[..., 2], expected["joints_3d_visible"])
    np.testing.assert_allclose(table.keypoints[..., :2], expected["joints_3d"], atol=1e-3)


def _pycocotools(document: dict, detections: list[dict]) -> np.ndarray:
    with redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = document
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(detections), "keypoints")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


@pytest.mark.parametrize("split", ["train", "val"])
def test_pycocotools_gives_the_same_numbers_on_the_table(split, tmp_path):
    """Crowds and unlabelled people included. Float32 moves an OKS by 1e-7, which crosses no threshold."""
    path = shared_path(f"samples/coco_mini/annotations/person_keypoints_{split}2017.json")
    table = _prepared("coco", tmp_path, path, path.parents[1] / f"{split}2017")
    original = json.loads(path.read_text())
    rng = np.random.default_rng(0)
    detections = [
        {
            "image_id": entry["image_id"],
            "category_id": 1,
            "score": float(rng.random()),
            "keypoints": (np.reshape(entry["keypoints"], (17, 3)) + rng.normal(0, 4, (17, 3)) * [1, 1, 0])
            .ravel()
            .tolist(),
        }
        for entry in original["annotations"]
        for _ in range(2)
    ]
    expected = _pycocotools(original, detections)
    assert 0.2 < expected[0] < 0.95
    np.testing.assert_allclose(_pycocotools(table.to_coco(), detections), expected, atol=1e-9)


@pytest.mark.parametrize("dataset", ["coco", "coco_wholebody", "aic", "crowdpose", "ochuman", "pw3d"])
def test_recorded_metrics_survive_the_records(dataset, tmp_path):
    """The recorded evaluation, with the ground truth sent through builder and table."""
    truth = golden_path(f"data/eval/{dataset}_synth_gt.json")
    rows = golden(f"data/eval/{dataset}_synth_pred.json")
    recorded = golden(f"data/eval/{dataset}_synth_expected.json")
    expected = recorded["metrics"]
    tiny_sets.write_pictures(tmp_path, golden(f"data/eval/{dataset}_synth_gt.json")["images"], noisy=False)
    table = _prepared(dataset, tmp_path / "data", truth, tmp_path)
    protocol = find_dataset(dataset)
    found = recorded_poses(rows, protocol)
    actual = evaluate.evaluate(protocol, ground_truth(table), found, **settings_of(recorded))
    # Rounding the truth to float32 moves an OKS by some 1e-7, which crosses no threshold here.
    assert {name: actual[name] for name in expected} == pytest.approx(expected, abs=1e-9)


def test_recorded_head_sizes_survive_the_records(tmp_path):
    source = golden_path("data/eval/mpii_synth_val.json")
    for name in {entry["image"] for entry in golden("data/eval/mpii_synth_val.json")}:
        (tmp_path / name).write_bytes(tiny_sets.jpeg(640, 480))
    (tmp_path / "people.json").write_bytes(source.read_bytes())
    (tmp_path / "mpii_gt_val.mat").write_bytes(golden_path("data/eval/mpii_synth_gt_val.mat").read_bytes())
    table = _prepared("mpii", tmp_path / "data", tmp_path / "people.json", tmp_path, split="val")
    # The recording numbers people by file; a prediction of this evaluation names image and instance.
    poses = recorded_poses(golden("data/eval/mpii_synth_pred.json"), find_dataset("mpii"))
    image_of = dict(zip(table.id.tolist(), table.image_id[table.image_index].tolist(), strict=True))
    poses = dataclasses.replace(poses, image_id=np.array([image_of[number] for number in poses.instance_id.tolist()]))
    actual = evaluate.evaluate(find_dataset("mpii"), ground_truth(table), poses, **POSES)
    expected = golden("data/eval/mpii_synth_expected.json")["metrics"]
    # Joints and predictions pass through float32: no error crosses the threshold, PCKh@0.1 is a float32
    # table.
    assert {name: actual[name] for name in expected} == pytest.approx(expected, abs=1e-5)


def test_source_can_be_pickled_and_shared_between_threads(tmp_path):
    path = tiny_sets.write_coco(tmp_path, tiny_sets.document(40))
    _prepared("coco", tmp_path, path, path.parents[1] / "val2017")
    source = records.open_records("coco", "sample", tmp_path)
    copy = pickle.loads(pickle.dumps(source))
    assert copy[7]["image"] == source[7]["image"] and len(copy) == 40
    order = np.random.default_rng(0).integers(0, 40, 400)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda index: int(source[index]["image_id"]), order))
    assert found == (order + 1).tolist()
    with pytest.raises(IndexError):
        source[40]


def test_records_are_an_ordinary_tfds_dataset(tmp_path):
    path = tiny_sets.write_coco(tmp_path, tiny_sets.document())
    _prepared("coco", tmp_path, path, path.parents[1] / "val2017", split="test-dev")
    builder = tfds.builder_from_directory(tmp_path / "coco/test-dev" / records.VERSION)
    assert builder.info.splits["test_dev"].num_examples == 4
    example = builder.as_data_source("test_dev")[0]
    assert example["image"].shape == (tiny_sets.HEIGHT, tiny_sets.WIDTH, 3)


def test_missing_split_names_the_command(tmp_path):
    for read in (records.open_records, records.load_annotations):
        with pytest.raises(records.DatasetNotPrepared, match="scripts.prepare_data aic") as error:
            read("aic", "train", tmp_path)
        assert ":demo" in str(error.value) and str(tmp_path) in str(error.value)


def test_strings_of_any_length_and_language(tmp_path):
    content = tiny_sets.document(3)
    names = ["ж/✓ 猫.jpg", "x" * 200 + ".jpg", "a b.jpg"]
    for image, name in zip(content["images"], names, strict=True):
        image["file_name"] = name
    path = tiny_sets.write_coco(tmp_path, content)
    table = _prepared("coco", tmp_path, path, path.parents[1] / "val2017")
    assert table.file_name.tolist() == names
    assert [records.open_records("coco", "sample", tmp_path)[i]["file_name"] for i in range(3)] == names


@pytest.mark.parametrize("file", ["annotations.npz", "*.array_record*", "summary.json"])
@pytest.mark.parametrize("cut", [True, False])
def test_a_copy_that_was_interrupted_is_named_before_it_is_read(tmp_path, file, cut):
    """Half a file, or none: else a training would come upon it in the middle, in ArrayRecord's words."""
    path = tiny_sets.write_coco(tmp_path, tiny_sets.document())
    _prepared("coco", tmp_path, path, path.parents[1] / "val2017")
    (damaged,) = records.split_dir("coco", "sample", tmp_path).glob(file)
    if cut and file != "summary.json":
        size = damaged.stat().st_size
        os.truncate(damaged, size // 2)
        said = f"{damaged.name} has {size // 2} bytes instead of {size}: copy the folder once more"
    else:
        damaged.unlink()
        said = f"{damaged.name} is not there: copy"
    for read in (records.open_records, records.load_annotations):
        with pytest.raises(ValueError, match=said) as error:
            read("coco", "sample", tmp_path)
        assert str(damaged.parent) in str(error.value)
