"""What the builders keep, what they refuse, and that nothing unfinished passes for a dataset."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import cv2
import numpy as np
import pytest
from tensorflow_datasets.core.utils import gcs_utils

from data_pipelines import records
from data_pipelines.builders import BUILDERS, base, checks
from data_pipelines.builders.report import Fault, RawDataError
from data_pipelines.datasets import DATASETS
from tests.data_pipelines import tiny_sets

ALL_IDS = [10, 11, 20, 21, 30, 31, 40, 41]


def _prepare(root: pathlib.Path, content: dict, **options) -> dict:
    tiny_sets.write_coco(root, content)
    return _build(root, **options)


def _build(root: pathlib.Path, **options) -> dict:
    builder = BUILDERS["coco"]("val", raw_dir=root, data_dir=root / "data", progress=False, **options)
    return builder.prepare()


def _table(root: pathlib.Path) -> records.Annotations:
    return records.load_annotations("coco", "val", root / "data")


def _edit(number: int, **changes):
    """An edit of the document: changes of one annotation; a change to None removes the key."""

    def apply(content: dict) -> None:
        (entry,) = (entry for entry in content["annotations"] if entry["id"] == number)
        entry.update(changes)
        for key in [key for key, value in changes.items() if value is None]:
            del entry[key]

    return apply


def _edit_image(number: int, **changes):
    def apply(content: dict) -> None:
        (entry,) = (entry for entry in content["images"] if entry["id"] == number)
        entry.update(changes)

    return apply


def _keypoints(**changes: float) -> list[float]:
    keypoints = list(tiny_sets.annotation(1, 1)["keypoints"])
    for place, value in changes.items():
        keypoints[int(place[1:])] = value
    return keypoints


INSTANCE_FAULTS = {
    "keypoints too short": (_edit(21, keypoints=[1, 2, 2] * 16), "wrong number of keypoints", 21),
    "keypoints too long": (_edit(21, keypoints=[1, 2, 2] * 18), "wrong number of keypoints", 21),
    "keypoints missing": (_edit(21, keypoints=None), "missing field", 21),
    "keypoints ragged": (_edit(21, keypoints=[[1, 2, 2], [3]]), "not a number", 21),
    "keypoint NaN": (_edit(21, keypoints=_keypoints(_0=float("nan"))), "not finite", 21),
    "keypoint infinite": (_edit(21, keypoints=_keypoints(_1=float("inf"))), "not finite", 21),
    "keypoint text": (_edit(21, keypoints=_keypoints(_1="left")), "not a number", 21),
    "keypoint huge": (_edit(21, keypoints=_keypoints(_1=1e12)), "number out of range", 21),
    "unlabelled keypoint huge": (_edit(21, keypoints=_keypoints(_49=1e300)), "number out of range", 21),
    "visibility negative": (_edit(21, keypoints=_keypoints(_2=-1)), "number out of range", 21),
    "box missing": (_edit(21, bbox=None), "missing field", 21),
    "box of three": (_edit(21, bbox=[1, 2, 3]), "wrong length", 21),
    "box NaN": (_edit(21, bbox=[1, 2, float("nan"), 4]), "not finite", 21),
    "box negative": (_edit(21, bbox=[10, 10, -5, 8]), "negative box", 21),
    "box outside": (_edit(21, bbox=[500, 5, 20, 20]), "box outside the image", 21),
    "box outside, left": (_edit(21, bbox=[-90, 5, 20, 20]), "box outside the image", 21),
    "box huge": (_edit(21, bbox=[1, 2, 1e30, 4]), "number out of range", 21),
    "box beyond float": (_edit(21, bbox=[1, 2, 10**400, 4]), "not a number", 21),
    "area huge": (_edit(21, area=1e300), "number out of range", 21),
    "area negative": (_edit(21, area=-3), "number out of range", 21),
    "id missing": (_edit(21, id=None), "missing field", None),
    "id huge": (_edit(21, id=2**70), "bad id", str(2**70)),
    "id text": (_edit(21, id="x21"), "bad id", "'x21'"),
    "id collides": (_edit(21, id=10), "duplicate annotation id", 10),
    "image id missing": (_edit(21, image_id=None), "missing field", 21),
    "image id unknown": (_edit(21, image_id=999), "annotation without image", 21),
    "image id a list": (_edit(21, image_id=[1]), "annotation without image", 21),
    "category unknown": (_edit(21, category_id=7), "unknown category", 21),
    "count huge": (_edit(21, num_keypoints=2**40), "not a number", 21),
    "not an object": (lambda content: content["annotations"].__setitem__(3, [1, 2]), "not an object", None),
}


@pytest.mark.parametrize("case", INSTANCE_FAULTS)
def test_broken_annotation_is_reported_and_nothing_else_is_lost(tmp_path, case):
    edit, reason, number = INSTANCE_FAULTS[case]
    content = tiny_sets.document()
    edit(content)
    summary = _prepare(tmp_path, content)

    assert summary["dropped"]["images"] == {}
    assert list(summary["dropped"]["instances"]) == [reason]
    tally = summary["dropped"]["instances"][reason]
    assert tally["count"] == 1
    assert tally["examples"][0]["file"] == str(tmp_path / "coco/annotations/person_keypoints_val2017.json")
    assert tally["examples"][0]["id"] == number
    assert _table(tmp_path).id.tolist() == [number for number in ALL_IDS if number != 21]
    assert summary["instances"] == 7 and summary["images"] == 4

    with pytest.raises(RawDataError, match="person_keypoints_val2017.json: annotation") as error:
        BUILDERS["coco"]("val", raw_dir=tmp_path, data_dir=tmp_path / "strict", progress=False, strict=True).prepare()
    assert reason in str(error.value) and repr(content["annotations"][3]["id"] if number else None) in str(error.value)
    assert not records.is_prepared("coco", "val", tmp_path / "strict")
    assert not list((tmp_path / "strict").rglob("incomplete.*"))


def _picture(number: int, change):
    """Changes the bytes of a picture; None removes it."""

    def apply(root: pathlib.Path) -> None:
        path = root / "coco/val2017" / f"{number:012d}.jpg"
        data = change(path.read_bytes())
        path.unlink() if data is None else path.write_bytes(data)

    return apply


PICTURE_FAULTS = {
    "missing": (_picture(2, lambda data: None), "missing image"),
    "empty": (_picture(2, lambda data: b""), "not a JPEG"),
    "a PNG": (_picture(2, lambda data: b"\x89PNG\r\n\x1a\n" + data), "not a JPEG"),
    "half of it": (_picture(2, lambda data: data[: len(data) // 2]), "truncated JPEG"),
    "last byte gone": (_picture(2, lambda data: data[:-1]), "truncated JPEG"),
    "headers only": (_picture(2, lambda data: data[:60]), "truncated JPEG"),
    "tail of zeros": (_picture(2, lambda data: data[:-200] + bytes(200)), "truncated JPEG"),
    "other size": (
        _picture(2, lambda data: tiny_sets.jpeg(tiny_sets.WIDTH + 1, tiny_sets.HEIGHT)),
        "image size differs",
    ),
}


@pytest.mark.parametrize("case", PICTURE_FAULTS)
def test_broken_picture_is_reported_and_nothing_else_is_lost(tmp_path, case):
    damage, reason = PICTURE_FAULTS[case]
    tiny_sets.write_coco(tmp_path, tiny_sets.document())
    damage(tmp_path)
    summary = _build(tmp_path)

    assert list(summary["dropped"]["images"]) == [reason] and summary["dropped"]["instances"] == {}
    (example,) = summary["dropped"]["images"][reason]["examples"]
    assert example["file"] == str(tmp_path / "coco/val2017/000000000002.jpg") and example["id"] == 2
    assert summary["remarks"]["instance lost with its image"]["count"] == 2
    assert _table(tmp_path).image_id.tolist() == [1, 3, 4]
    assert _table(tmp_path).id.tolist() == [number for number in ALL_IDS if number // 10 != 2]
    with pytest.raises(RawDataError, match=f"000000000002.jpg: image 2: {reason}"):
        BUILDERS["coco"]("val", raw_dir=tmp_path, data_dir=tmp_path / "strict", progress=False, strict=True).prepare()


IMAGE_FAULTS = {
    "no id": (_edit_image(2, id=None), "missing field"),
    "text id": (_edit_image(2, id="two"), "bad id"),
    "NaN id": (_edit_image(2, id=float("nan")), "bad id"),
    "no file name": (_edit_image(2, file_name=None), "bad image entry"),
    "NaN width": (_edit_image(2, width=float("nan")), "image size differs"),
    "not an object": (lambda content: content["images"].__setitem__(1, "two"), "bad image entry"),
}


@pytest.mark.parametrize("case", IMAGE_FAULTS)
def test_broken_image_entry_is_reported_and_no_other_image_is_lost(tmp_path, case):
    edit, reason = IMAGE_FAULTS[case]
    content = tiny_sets.document()
    tiny_sets.write_coco(tmp_path, content)
    edit(content)
    (tmp_path / "coco/annotations/person_keypoints_val2017.json").write_text(json.dumps(content))
    summary = _build(tmp_path)

    assert list(summary["dropped"]["images"]) == [reason]
    assert set(ALL_IDS) - set(_table(tmp_path).id.tolist()) == {20, 21}
    assert _table(tmp_path).image_id.tolist() == [1, 3, 4]


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"images": [', "not valid JSON.*line 1"),
        ("", "not valid JSON"),
        ("[1, 2]", "does not hold a JSON object"),
        ('{"annotations": []}', "no list 'images'"),
        ('{"images": {}}', "no list 'images'"),
        ('{"images": [], "annotations": 3}', "no list 'annotations'"),
        ('{"images": []}', "no list 'annotations'"),
        ('{"images": [], "annotations": [], "categories": []}', "not one usable image"),
        ('{"images": [' + "1" * 5000 + "]}", "not valid JSON"),
    ],
)
def test_unusable_annotation_file_is_named(tmp_path, text, message):
    path = tiny_sets.write_coco(tmp_path, tiny_sets.document())
    path.write_text(text)
    with pytest.raises(RawDataError, match=message) as error:
        _build(tmp_path)
    assert "person_keypoints_val2017.json" in str(error.value) or "not one usable" in message
    assert not records.is_prepared("coco", "val", tmp_path / "data")


def test_unusual_entries_are_kept_with_a_remark(tmp_path):
    content = tiny_sets.document()
    _edit(10, bbox=[-6, 5, 20, 20])(content)
    _edit(11, bbox=[8, 8, 0, 0])(content)
    _edit(20, iscrowd=1, num_keypoints=0, keypoints=[0] * 51, segmentation={"counts": 3})(content)
    _edit(21, keypoints=_keypoints(_3=12, _4=1200, _5=2))(content)
    _edit(30, keypoints=_keypoints(_3=-1, _4=-1, _5=2, _6=-9, _7=5, _8=1))(content)
    _edit(31, keypoints=_keypoints(_3=-0.5, _4=tiny_sets.HEIGHT, _5=2, _6=-9, _7=-9, _8=0))(content)
    summary = _prepare(tmp_path, content)
    details = [case["detail"] for case in summary["remarks"]["labelled keypoints outside the image (kept)"]["examples"]]
    assert details == [f"keypoint 2 at {place} with visibility 2, image 48x32" for place in ("12, 1200", "-1, -1")]
    assert {name: tally["count"] for name, tally in summary["remarks"].items()} == {
        "box reaches over the border (kept)": 1,
        "box without extent (kept)": 1,
        "labelled keypoints outside the image (kept)": 2,
        "unusable segmentation (instance kept without)": 1,
    }
    assert _table(tmp_path).id.tolist() == ALL_IDS
    assert summary["crowds"] == 1 and summary["without_keypoints"] == 0


@pytest.mark.parametrize(
    ("change", "remark", "detail"),
    [
        (
            {"keypoints": _keypoints(_3=0, _4=0, _5=1)},
            "labelled keypoints at 0, 0 (kept)",
            "keypoint 2 at 0, 0 with visibility 1; one that is not labelled has visibility 0",
        ),
        (
            {"keypoints": [0.3, 0.5, 2] * 3 + [0, 0, 0] * 14},
            "no labelled keypoint in the box (kept)",
            "keypoint 1 at 0.3, 0.5 with visibility 2, box [4.25, 5.0, 20.0, 22.5], image 48x32, all in pixels",
        ),
        (
            {"bbox": [10, 12, 1, 0.9], "area": 0.3},
            "box of at most a pixel (kept)",
            "bbox [10.0, 12.0, 1.0, 0.9], image 48x32; pixels are needed, not shares of the picture",
        ),
        ({"area": 4.4}, "area unlike the box (kept)", "area 4.4 for a box of 450 square pixels"),
        ({"area": 500}, "area unlike the box (kept)", "area 500 for a box of 450 square pixels"),
        (
            {"bbox": [8, 9, 42, 28]},
            "box reaches over the border (kept)",
            "bbox [8.0, 9.0, 42.0, 28.0], image 48x32; x, y, width, height are needed, and these may be two corners",
        ),
    ],
)
def test_numbers_that_tools_write_by_mistake_are_told(tmp_path, change, remark, detail):
    content = tiny_sets.document()
    _edit(20, **change)(content)
    remarks = _prepare(tmp_path, content)["remarks"]
    assert list(remarks) == [remark], "and nobody else has one"
    assert [(case["id"], case["detail"]) for case in remarks[remark]["examples"]] == [(20, detail)]
    assert _table(tmp_path).id.tolist() == ALL_IDS


def test_ordinary_numbers_are_not_mentioned(tmp_path):
    content = tiny_sets.document()
    _edit(10, keypoints=_keypoints(_3=0, _4=7, _5=2))(content)  # on the border
    _edit(11, keypoints=_keypoints(_3=0, _4=0, _5=0))(content)  # not labelled
    _edit(20, keypoints=_keypoints(_0=45, _1=30, _2=2))(content)  # beside the box, others in it
    _edit(21, keypoints=[0] * 51)(content)
    _edit(30, area=450)(content)  # the box's
    _edit(31, area=None)(content)
    _edit(40, bbox=[10.5, 12, 1.5, 1], area=1.4)(content)
    assert _prepare(tmp_path, content)["remarks"] == {}


def test_a_picture_with_several_ids_is_kept_with_each_and_told(tmp_path):
    content = tiny_sets.document()
    content["images"].append(tiny_sets.image_entry(2) | {"id": 9})
    summary = _prepare(tmp_path, content)
    (case,) = summary["remarks"]["picture with several ids (kept with each)"]["examples"]
    assert case["file"].endswith("000000000002.jpg") and case["id"] == 9
    assert summary["images"] == 5 and _table(tmp_path).id.tolist() == ALL_IDS


def test_the_same_labels_twice_are_told(tmp_path):
    """As tools export them that were asked twice: such a person counts twice, and is missed once in evaluations."""
    content = tiny_sets.document()
    box = {"bbox": [1, 1, 30, 30], "area": 400}
    for number in (20, 21):
        _edit(number, **box)(content)
    _edit(30, **box, keypoints=[0] * 51)(content)
    _edit(31, **box, keypoints=[0] * 51)(content)  # nobody can tell whose boxes these are
    summary = _prepare(tmp_path, content)
    (case,) = summary["remarks"]["labels of another one in the picture once more (kept)"]["examples"]
    assert (case["id"], case["detail"]) == (21, "box and keypoints are those of 20, too")
    assert _table(tmp_path).id.tolist() == ALL_IDS


def test_unusable_category_costs_its_own_annotations_only(tmp_path):
    content = tiny_sets.document()
    content["categories"] = [tiny_sets.PERSON, {"id": None, "name": "dog"}, "cat", {"id": 3}]
    _edit(21, category_id=2)(content)
    _edit(30, category_id=3)(content)
    summary = _prepare(tmp_path, content)
    assert summary["remarks"]["unusable category"]["count"] == 2
    assert summary["dropped"]["instances"]["unknown category"]["examples"][0]["id"] == 21
    assert _table(tmp_path).categories == ((1, "person"), (3, "3"))


def test_masks_are_kept_for_crowds_and_unlabelled_people_only(tmp_path):
    content = tiny_sets.document()
    polygon, runs = [[1, 2, 9.5, 2, 9, 8]], {"size": [32, 48], "counts": [3, 4, 32 * 48 - 7]}
    _edit(10, segmentation=polygon)(content)
    _edit(11, segmentation=runs, iscrowd=1, keypoints=None)(content)
    _edit(20, segmentation=polygon, num_keypoints=0)(content)
    _edit(21, segmentation=polygon, num_keypoints=None, keypoints=[0] * 51)(content)
    _prepare(tmp_path, content)
    masks = dict(zip(_table(tmp_path).id.tolist(), _table(tmp_path).mask, strict=True))
    assert masks[10] == "" and json.loads(masks[11]) == runs
    assert json.loads(masks[20]) == polygon and json.loads(masks[21]) == polygon
    assert _table(tmp_path).crowd.tolist() == [number == 11 for number in ALL_IDS]


def test_absent_fields_are_marked_absent(tmp_path):
    content = tiny_sets.document(1)
    for entry in content["annotations"]:
        for key in ("area", "iscrowd", "num_keypoints", "category_id"):
            del entry[key]
    del content["categories"]
    for key in ("width", "height"):
        del content["images"][0][key]
    tiny_sets.write_coco(tmp_path, tiny_sets.document(1))
    (tmp_path / "coco/annotations/person_keypoints_val2017.json").write_text(json.dumps(content))
    _build(tmp_path)
    table = _table(tmp_path)
    assert table.area.tolist() == [-1, -1] and table.num_keypoints.tolist() == [-1, -1]
    assert (table.width[0], table.height[0]) == (tiny_sets.WIDTH, tiny_sets.HEIGHT)
    assert table.categories == ((1, "person"),)
    assert not {"area", "num_keypoints", "segmentation", "head_size"} & set(table.to_coco()["annotations"][0])


def test_full_decode_finds_what_the_headers_hide():
    data = tiny_sets.jpeg(seed=1)
    frame = data.index(b"\xff\xc0")
    broken = data[: frame + 9] + b"\x09" + data[frame + 10 :]  # nine colour components
    assert checks.read_jpeg(broken)[1:] == (tiny_sets.WIDTH, tiny_sets.HEIGHT)
    with pytest.raises(Fault, match="undecodable JPEG"):
        checks.read_jpeg(broken, decode=True)


@pytest.mark.parametrize("process, bits", [(0xC3, 8), (0xC7, 8), (0xCB, 8), (0xC1, 12), (0xC2, 12)])
def test_jpegs_that_no_training_could_decode_are_told_by_their_headers(process, bits):
    """Lossless and hierarchical ones, and of 12 bits, as scanners and medical devices write."""
    data = bytearray(tiny_sets.jpeg(seed=1))
    frame = data.index(b"\xff\xc0")
    data[frame + 1], data[frame + 4] = process, bits
    assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) is None
    with pytest.raises(Fault, match=f"undecodable JPEG: of process SOF{process - 0xC0} and {bits} bits, .*usual JPEG"):
        checks.read_jpeg(bytes(data))


def test_jpeg_with_thumbnail_and_trailing_data():
    """The end marker of an embedded thumbnail is not the picture's; data behind the picture do no harm."""
    data, thumbnail = tiny_sets.jpeg(seed=1), tiny_sets.jpeg(8, 8)
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    with_thumbnail = data[:2] + segment + data[2:]
    assert checks.read_jpeg(with_thumbnail + b"\0" * 9)[1:] == (tiny_sets.WIDTH, tiny_sets.HEIGHT)
    with pytest.raises(Fault, match="truncated JPEG"):
        checks.read_jpeg(with_thumbnail[:-2])


def test_shards_keep_every_image_in_order(tmp_path, monkeypatch):
    content = tiny_sets.document(150)  # more than two chunks of the table
    monkeypatch.setattr(base, "SHARD_BYTES", 100_000)
    _prepare(tmp_path, content)
    directory = records.split_dir("coco", "val", tmp_path / "data")
    assert len(list(directory.glob("*.array_record*"))) > 3
    source, table = records.open_records("coco", "val", tmp_path / "data"), _table(tmp_path)
    assert [int(source[i]["image_id"]) for i in range(len(source))] == list(range(1, 151))
    assert table.image_id.tolist() == list(range(1, 151))
    assert table.image_index.tolist() == np.repeat(np.arange(150), 2).tolist()


def test_only_one_process_prepares_a_split(tmp_path):
    tiny_sets.write_coco(tmp_path, tiny_sets.document())
    code = (
        "import sys; from data_pipelines.builders import base; import pathlib\n"
        "with base._only_one(pathlib.Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()"
    )
    directory = records.split_dir("coco", "val", tmp_path / "data").parent
    with subprocess.Popen(
        [sys.executable, "-c", code, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RawDataError, match="being prepared by another process"):
            _build(tmp_path)
        other.stdin.close()
    assert _build(tmp_path)["images"] == 4


def test_failure_half_way_leaves_nothing(tmp_path, monkeypatch):
    content = tiny_sets.document(150)
    write = base._ShardWriter.write

    def failing(self, example):
        if sum(self.lengths) == 100:
            raise KeyboardInterrupt
        write(self, example)

    monkeypatch.setattr(base._ShardWriter, "write", failing)
    with pytest.raises(KeyboardInterrupt):
        _prepare(tmp_path, content)
    assert not records.is_prepared("coco", "val", tmp_path / "data")
    assert not list((tmp_path / "data").rglob("*.array_record*"))


def test_tfdss_own_bucket_is_not_asked(tmp_path, monkeypatch):
    """It has none of these datasets; asking takes network, and each time leaves an empty temporary folder."""
    asked = []
    monkeypatch.setattr(gcs_utils, "exists", lambda path: asked.append(path) or False)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    _prepare(tmp_path, tiny_sets.document())
    assert not asked and not list((tmp_path / "temporary").iterdir())


def test_tensorflow_and_jax_are_never_imported(tmp_path):
    """Even where they could be: a stand-in for each tells of any attempt."""
    tiny_sets.write_coco(tmp_path, tiny_sets.document())
    for name in ("tensorflow", "jax", "torch"):
        (tmp_path / f"{name}.py").write_text("print('imported', __name__)")
    code = (
        "import sys; from data_pipelines import records; from data_pipelines.builders import BUILDERS\n"
        f"BUILDERS['coco']('val', raw_dir={str(tmp_path)!r}, data_dir={str(tmp_path / 'data')!r}).prepare()\n"
        f"records.open_records('coco', 'val', {str(tmp_path / 'data')!r})[0]\n"
        f"records.load_annotations('coco', 'val', {str(tmp_path / 'data')!r})\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'tensorflow', 'jax', 'torch'}))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.strip() == "[]"


def test_every_dataset_has_a_builder():
    assert set(DATASETS) | {"custom"} == set(BUILDERS)  # "custom": datasets that users define
    # A user's dataset has the splits that the user names.
    assert all(builder.splits for name, builder in BUILDERS.items() if name != "custom")


def test_builder_of_ones_own(tmp_path):
    """What the documentation of the base class says is enough."""

    class Mine(base.PoseBuilder):
        dataset, splits = "coco", ("mine",)

        def images(self):
            yield (
                tiny_sets.jpeg(seed=3),
                {
                    "image_id": 5,
                    "file_name": "five.jpg",
                    "instances": [{"id": 1, "box": [1, 2, 20, 20], "keypoints": np.ones((17, 3))}],
                },
            )
            yield (
                tiny_sets.jpeg(seed=4),
                {
                    "image_id": 6,
                    "file_name": "six.jpg",
                    "instances": [{"id": 2, "box": [1, 2, 20, 20], "keypoints": np.ones((16, 3))}],
                },
            )

    summary = Mine("mine", data_dir=tmp_path, progress=False).prepare()
    assert summary["images"] == 2 and summary["instances"] == 1
    assert summary["dropped"]["instances"]["wrong number of keypoints"]["examples"] == [
        {"file": "six.jpg", "id": 2, "detail": "keypoints has 48 numbers, 51 are needed"}
    ]
    assert records.open_records("coco", "mine", tmp_path)[0]["image"] == tiny_sets.jpeg(seed=3)
    assert os.listdir(tmp_path / "coco/mine/1.0.0")
