"""Boxes as people have them: lists, arrays, and files of detections."""

from __future__ import annotations

import json
import pathlib
import unicodedata
from contextlib import nullcontext

import cv2
import numpy as np
import pytest

from data_pipelines.skeletons import KEYPOINT_SETS
from pose_common.prediction.pictures import Picture, PictureError
from pose_common.prediction.result import Result
from posebh_jax.boxes import boxes_of, with_boxes, with_finder
from tests.pose_common.prediction.test_pictures import damaged_video

IMAGE = np.zeros((20, 30, 3), np.uint8)


def found(boxes, *names):
    """Boxes of pictures of these names, in this order, without scores."""
    of_picture = boxes_of(boxes, len(names))
    return [of_picture(number, Picture(name, IMAGE))[0].tolist() for number, name in enumerate(names)]


@pytest.fixture
def write(tmp_path):
    def write(document):
        (tmp_path / "boxes.json").write_text(json.dumps(document))
        return tmp_path / "boxes.json"

    return write


def test_plain_lists():
    box = [1, 2, 3, 4]
    assert found(box, "a") == [[box]] and found([box], "a") == [[box]] and found([], "a") == [[]]
    assert found([[], [box]], "a", "b") == [[], [box]] and found([[box], []], "a", "b") == [[box], []]
    assert found([np.zeros((0, 4)), np.array([box])], "a", "b") == [[], [box]]
    assert found((box, box), "a") == [[box, box]]
    with pytest.raises(ValueError, match="boxes of 2 pictures were given for 1"):
        found([[box], [box]], "a")
    for other in (None, 5):
        with pytest.raises(ValueError, match=f"boxes={other}: give 'whole', "):
            boxes_of(other)


class Table:
    """As a pandas table: iterating gives its columns' names."""

    def __init__(self, rows):
        self.rows = rows

    def __array__(self, dtype=None, copy=None):
        return np.array(self.rows, dtype)

    def __iter__(self):
        return iter("xywh")


def test_a_table_is_the_array_that_it_holds():
    box = [1, 2, 3, 4]
    assert found(Table([box, box]), "a") == [[box, box]] and found([Table([box])], "a") == [[box]]


def test_boxes_that_hardly_are_of_the_picture_are_told_once(caplog):
    """Two corners in place of a corner and sides, and shares of the picture's sides; IMAGE is 30 wide and 20 high."""
    over_the_border = [-3, -3, 12, 12]  # 81 of 144 square pixels are inside
    assert found([[over_the_border]], "a") == [[over_the_border]] and not caplog.records
    corners, shares = [20, 10, 28, 18], [0.5, 0.5, 0.2, 0.3]
    for unlikely in (corners, shares):
        caplog.clear()
        assert found([[over_the_border, unlikely], [unlikely]], "a", "b") == [[over_the_border, unlikely], [unlikely]]
        (record,) = caplog.records
        assert record.message.startswith("1 of 2 boxes of a, 30x20 pixels, lie mostly outside or are smaller")
        assert str([float(number) for number in unlikely]) in record.message


def test_an_array_of_several_pictures_has_the_boxes_of_each():
    boxes = np.arange(1, 17, dtype=float).reshape(2, 2, 4)
    assert found(boxes, "a", "b") == boxes.tolist()
    assert found(boxes[:1], "a") == found(boxes[0], "a") == boxes[:1].tolist()
    assert found(np.zeros((0, 4)), "a") == found(np.zeros((1, 0, 4)), "a") == [[]]
    with pytest.raises(ValueError, match=r"boxes of 2 pictures were given, none for picture 2 \(c\)"):
        found(boxes, "a", "b", "c")


def test_a_number_is_an_id_and_not_a_place(write):
    """Pictures without a detection have nobody, and not the boxes of the picture in their place of the list."""
    file = write([{"image_id": 1, "bbox": [1, 1, 10, 10]}, {"image_id": 3, "bbox": [3, 3, 30, 30]}])
    names = [f"{number:06d}.jpg" for number in range(1, 5)]
    assert found(file, *names) == [[[1, 1, 10, 10]], [], [[3, 3, 30, 30]], []]


def test_a_frame_is_no_id_whatever_its_film_is_called(write):
    path = write([{"image_id": number, "bbox": [1 + number, 1, 2, 2]} for number in range(3)])
    of_picture = boxes_of(path)
    frames = [Picture(f"1.5_{number:06d}", IMAGE, number / 30) for number in range(3)]
    assert [of_picture(number, frame)[0][0, 0] for number, frame in enumerate(frames)] == [1, 2, 3]


def test_places_are_counted_from_0(write):
    """Ids from 1, or those of other pictures, say of no picture which one it is."""
    entries = [{"image_id": number, "bbox": [number, 1, 10, 10]} for number in range(4)]
    names = ["a.jpg", "b.jpg", "c.jpg"]
    assert found(write(entries[:3]), *names) == [[[number, 1, 10, 10]] for number in range(3)]
    for some in (entries[1:], entries[1:3], [entries[0], entries[3]]):
        with pytest.raises(
            ValueError, match="do not count the pictures from 0, and name none a.jpg; give `image` or `file_name`, or"
        ):
            found(write(some), *names)
    file = write([{**entries[1], "image": "a.jpg"}, entries[2]])
    assert found(file, "a.jpg") == [[[1, 1, 10, 10]]]


def test_pictures_have_the_ids_of_the_boxes_file(write):
    """As they are written there, by which COCO's tools compare results with it; none where it lists no pictures."""
    images = [{"id": 42, "file_name": "cam/a.jpg"}, {"id": "7", "file_name": "b.jpg"}, {"id": 8, "file_name": "c.jpg"}]
    boxes = [{"image_id": number, "bbox": [1, 1, 10, 10]} for number in (42, 7)]
    for file, expected in (({"images": images, "annotations": boxes}, {"a.jpg": 42, "b.jpg": "7"}), (boxes, {})):
        of_picture = boxes_of(write(file), 50)
        for number, name in ((42, "a.jpg"), (7, "b.jpg")):
            picture = Picture(name if expected else f"{number}.jpg", IMAGE)
            assert of_picture(number, picture).image_id == expected.get(name)


def test_names_as_tools_write_them(write):
    bbox = [1, 1, 10, 10]
    accented = unicodedata.normalize("NFD", "cafés.jpg")
    named = ["street", r"C:\pictures\a.jpg", accented, "folder/b.jpg"]
    file = write([{"image_id": name, "bbox": bbox} for name in named])
    assert found(file, "street.jpg", "a.jpg", "cafés.jpg", "b.jpg", "c.jpg") == [[bbox]] * 4 + [[]]
    images = [{"id": 7, "file_name": "cam1/a.jpg"}, {"id": 8, "file_name": "cam2/a.jpg"}]
    file = write({"images": images, "annotations": [{"image_id": i, "bbox": bbox} for i in (7, 8)]})
    with pytest.raises(ValueError, match="cam1/a.jpg and cam2/a.jpg may both be a.jpg"):
        found(file, "a.jpg")
    assert found(file, "b.jpg") == [[]]


def test_pictures_of_several_folders_are_told_apart(write):
    def boxes(*names):
        return write([{"image": name, "bbox": [number, 1, 10, 10]} for number, name in enumerate(names)])

    one, two, three = ([[number, 1, 10, 10]] for number in range(3))
    file = boxes("a/1.jpg", "b/1.jpg", "2.jpg")
    assert found(file, "a/1.jpg", "b/1.jpg", "a/2.jpg", "c/1.jpg") == [one, two, three, []]
    assert found(file, "x/a/1.jpg", "x/b/1.jpg", "2.jpg") == [one, two, three]
    assert found(boxes("/data/a/1.jpg", "/data/b/1"), "a/1.jpg", "b/1.jpg") == [one, two]
    assert found(boxes("1.jpg", "a/1.jpg"), "1.jpg", "a/1.jpg") == [one, two]
    for named in (boxes("1.jpg"), write([{"image_id": 1, "bbox": [1, 1, 10, 10]}])):
        with pytest.raises(ValueError, match="1(.jpg)? may be both a/1.jpg and b/1.jpg"):
            found(named, "a/1.jpg", "b/1.jpg")
    with pytest.raises(ValueError, match="a/1.jpg may be both 1.jpg and a/1.jpg"):
        found(boxes("a/1.jpg"), "1.jpg", "a/1.jpg")


def test_boxes_by_path_find_the_files_that_are_named_so(tmp_path, monkeypatch):
    """Where the pictures' names, each alone, fit several."""
    monkeypatch.chdir(tmp_path)
    paths = ["A/1.png", "B/1.png"]
    for path in paths:
        pathlib.Path(path).parent.mkdir()
        cv2.imwrite(path, IMAGE)

    def numbers(source, paths=paths):
        found = with_boxes(source, boxes_of({path: [number, 1, 10, 10] for number, path in enumerate(paths)}))
        return [(picture.name, boxes[0, 0]) for picture, (boxes, *_) in found]

    for source in ("A/1.png", "A", "./A/*.png", tmp_path / "A"):
        assert numbers(source) == [("1.png", 0)]
    assert numbers(iter(paths)) == [("1.png", 0), ("1.png", 1)]
    assert numbers("A", [str(tmp_path / path) for path in paths]) == [("1.png", 0)]
    assert numbers("B/1.png", ["1.png", "B/1.png"]) == [("1.png", 1)]
    monkeypatch.chdir("B")
    above = [f"../{path}" for path in paths]
    assert numbers("1.png") == [("1.png", 1)] and numbers(iter(above), above) == [("1.png", 0), ("1.png", 1)]
    with pytest.raises(ValueError, match="C/1.png and D/1.png may both be 1.png"):
        numbers("1.png", ["C/1.png", "D/1.png"])
    for boxes in ("1.png", "A/1.png"):  # an iterator's files are called 1.png, both of them
        with pytest.raises(ValueError, match=rf"{boxes} may be both {tmp_path}/A/1.png and {tmp_path}/B/1.png"):
            numbers(iter(above), [boxes])
    assert numbers(iter(["1.png", "../B/1.png"]), ["1.png"]) == [("1.png", 0)] * 2


def test_a_file_of_other_pictures_is_told_once(write, caplog):
    file = write([{"image": "x.jpg", "bbox": [1, 1, 10, 10]}])
    assert found(file, "x.jpg", "a.jpg") == [[[1, 1, 10, 10]], []]
    assert not caplog.records, "the file is of these pictures; the second has nobody"
    found(file, "a.jpg", "b.jpg")
    assert [record.message for record in caplog.records] == [f"{file} has no boxes of a.jpg; it has those of x.jpg"]


def test_a_name_that_is_written_otherwise_is_told_once(write, caplog):
    """In other capitals, or as of another format; also where other pictures have boxes."""
    names = ("x.jpg", "img_1.jpg", "a/b.png")
    file = write([{"image": name, "bbox": [1, 1, 10, 10]} for name in names])
    assert found(file, *names, "c/b.png", "other.jpg")[3:] == [[], []] and not caplog.records
    for pictures, told in ((("x.jpg", "IMG_1.JPG", "B.png"), names[1]), (("B.jpg", "IMG_1.JPG"), "b.png")):
        caplog.clear()
        assert found(file, *pictures)[-1] == []
        other = next(name for name in pictures if name != "x.jpg")
        assert caplog.messages == [f"{file} has no boxes of {other}; it has those of {told}"]


def test_boxes_by_name(write):
    """A mapping, and entries as a file has them or `to_coco` gives them."""
    box, other = [1, 2, 3, 4], [5, 6, 7, 8]
    by_name = {"b.jpg": [box, other], pathlib.Path("folder/a.jpg"): np.array(other), "c.jpg": []}
    entries = [{"image": "b.jpg", "bbox": box}, {"image": "b.jpg", "bbox": other}, {"image": "a.jpg", "bbox": other}]
    for boxes in (by_name, entries, write(entries)):
        assert found(boxes, "a.jpg", "b.jpg", "c.jpg") == [[other], [box, other], []]
    keypoints, scores = np.ones((1, 17, 3), np.float32), np.array([0.25], np.float32)
    result = Result(Picture("a.jpg", IMAGE), "coco", KEYPOINT_SETS["coco"], keypoints, np.float32([box]), scores)
    array, score, _ = boxes_of(result.to_coco())(0, result.picture)
    assert array.tolist() == [box] and score.tolist() == [0.25]
    assert boxes_of({"a.jpg": [[*box, 0.5]]})(0, result.picture)[1].tolist() == [0.5]
    assert found({0: box, 1: other}, "x", "y") == [[box], [other]]


def test_nobody_by_name_or_number(caplog):
    """A mapping knows the pictures of which it says so."""
    box = [1, 2, 3, 4]
    assert found({"a.jpg": [], "b.jpg": [box]}, "a.jpg", "b.jpg") == [[], [box]]
    assert found({0: [], 1: [box]}, "x", "y") == [[], [box]] and found({0: [], 1: []}, "x", "y") == [[], []]
    assert not caplog.records
    with pytest.raises(ValueError, match="boxes: the given mapping: None is no name or number of a picture"):
        boxes_of({None: []})


def test_what_is_no_box_is_a_sentence():
    box = [1, 2, 3, 4]
    for boxes, names, message in (
        ([None, [box]], "ab", r"boxes of a: None; give \[\] for nobody"),
        ({"a": [[1, 2, 3]]}, "a", r"boxes of a: expected \[N, 4\]"),
        ({"a": [[1, 2, 0, 4]]}, "a", r"boxes of a: expected \[N, 4\] .* positive sides"),
        ({"a": [[1, 2, 3, 0]]}, "a", r"boxes of a: expected \[N, 4\] .* positive sides"),
        ({"a": [[1, 2, 1e39, 4]]}, "a", r"boxes of a: expected \[N, 4\] .* 1e\+39"),
        ({"a": "left"}, "a", r"boxes of a: expected \[N, 4\]"),
        ([box, [1, 2]], "a", r"boxes of a: expected \[N, 4\]"),
        ([[box, [1, 2]]], "a", "boxes=.*: give 'whole', "),
        ([[{"bbox": box}]], "a", r"boxes of a: expected \[N, 4\]"),
        ([{"box": box}], "a", "the given list: entry 0 is no detection.*it names no picture: give `image`"),
        ([{"image": "a", "box": box}], "a", "the given list: entry 0 is no detection.*'bbox'"),
        (np.array([[1, 2, 3, 4, 0.5, 0]]), "a", r"given: \[array\(\[1"),
    ):
        with pytest.raises(ValueError, match=message):
            found(boxes, *names)


def test_a_bad_box_of_a_file_costs_itself(write, caplog):
    """As in evaluation; all are looked at before the first picture."""
    good, flat, nowhere, far = [1, 1, 10, 10], [1, 1, 0, 10], [float("nan"), 1, 10, 10], [1e39, 1, 10, 10]
    file = write([{"image": f"{n}.jpg", "bbox": bbox} for n, bbox in enumerate([good, flat, nowhere, good, far])])
    boxes_of(file)
    (told,) = [record.message for record in caplog.records]
    assert (
        told.startswith(f"3 of 5 boxes of {file} left out, ") and "first: entry 1 (1.jpg): bbox [1, 1, 0, 10]" in told
    )
    assert found(file, "0.jpg", "1.jpg", "2.jpg", "3.jpg", "4.jpg") == [[good], [], [], [good], []]
    caplog.clear()
    fields = [{"bbox": good}, {"bbox": None}, {"bbox": [None, 1, 10, 10]}, {"bbox": good, "score": None}]
    file = write([{"image": f"{n}.jpg", **field} for n, field in enumerate(fields)])
    assert found(file, "0.jpg", "1.jpg", "2.jpg", "3.jpg") == [[good], [], [], []]
    assert "3 of 4 boxes" in caplog.text and "first: entry 1 (1.jpg): bbox None of score 1" in caplog.text


def test_scores_below_zero_are_told_once(caplog):
    """A detector's logits: nobody was found, without a word."""
    rows = [[1, 1, 10, 10, -0.5], [2, 2, 10, 10, 0.5]]
    assert found([rows, rows], "a.jpg", "b.jpg") == [[rows[1][:4]]] * 2
    (record,) = caplog.records
    assert record.getMessage().startswith("1 of 2 boxes of a.jpg have a score below 0, and give no pose")


def test_boxes_by_score_and_category(write, caplog):
    rows = [[1, 1, 10, 10, 0.2], [2, 2, 10, 10, 0.3], [3, 3, 10, 10, 0.9]]
    file = write([{"image": "a.jpg", "category_id": 1 + row[0] % 2, "bbox": row[:4], "score": row[4]} for row in rows])
    picture = Picture("a.jpg", IMAGE)
    for given in (rows, file):
        assert boxes_of(given, threshold=0.3)(0, picture)[1].tolist() == [0.3, 0.9]
        assert boxes_of(given)(0, picture)[1].tolist() == [0.2, 0.3, 0.9]
    assert f"{file}: boxes of 2 categories are taken: 2 of category 2, 1 of category 1; category=" in caplog.text
    caplog.clear()
    assert boxes_of(file, category=2)(0, picture)[1].tolist() == [0.2, 0.9] and not caplog.text
    with pytest.raises(ValueError, match=r"category 3 has none; there are 2 of category 2, 1 of category 1"):
        boxes_of(file, category=3)
    for other in ("whole", rows):
        with pytest.raises(ValueError, match="category=1: only boxes in COCO's format have one"):
            boxes_of(other, category=1)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("of_image, of_box", [(7, 7), ("7", 7), (7, "7"), (7.0, "7.0")])
def test_an_annotation_file_as_preparation_reads_it(write, encoding, of_image, of_box):
    entries = [{"image_id": of_box, "bbox": [1, 2, 3, 4]}, {"image_id": of_box, "bbox": [5, 6, 7, 8], "iscrowd": "1"}]
    path = write({"images": [{"id": of_image, "file_name": "ä.jpg"}], "annotations": entries})
    path.write_bytes(path.read_bytes().decode().encode(encoding))
    assert found(path, "ä.jpg") == [[[1, 2, 3, 4]]]


@pytest.mark.parametrize(
    "size, said",
    [
        ((30, 20), None),
        (("30", 20.0), None),
        ((0, 0), None),
        ((None, 20), None),
        ((20, 30), "are of 20x30 pixels, but the picture has 30x20 when its EXIF orientation is applied"),
        ((60, 40), "are of 60x40 pixels, but the picture has 30x20$"),
    ],
)
def test_boxes_of_the_picture_in_another_size_are_not_taken(write, size, said):
    """Of a picture as stored, which is read turned upright, or of a larger copy. It costs that picture alone."""
    images = [{"id": 7, "file_name": "f/a.jpg", "width": size[0], "height": size[1]}, {"id": 8, "file_name": "b.jpg"}]
    file = write({"images": images, "annotations": [{"image_id": i, "bbox": [1, 2, 3, 4]} for i in (7, 8)]})
    with nullcontext() if said is None else pytest.raises(PictureError, match=f"a.jpg: boxes of .*boxes.json {said}"):
        assert found(file, "a.jpg") == [[[1, 2, 3, 4]]]
    told = []
    pictures = [Picture(name, IMAGE) for name in ("a.jpg", "b.jpg")]
    taken = [picture.name for picture, _ in with_boxes(pictures, boxes_of(file, 2), told.append)]
    assert (taken, len(told)) == ((["a.jpg", "b.jpg"], 0) if said is None else (["b.jpg"], 1))


def test_a_category_however_it_is_written(write):
    """7, 7.0 and "7" are the same, as in every field of annotations."""
    ids = (2, 2.0, "2", "1")
    file = write([{"image": "a.jpg", "category_id": number, "bbox": [1, 1, 10, 10]} for number in ids])
    assert len(boxes_of(file, category=2)(0, Picture("a.jpg", IMAGE))[0]) == 3
    with pytest.raises(ValueError, match="category 3 has none; there are 3 of category 2, 1 of category 1"):
        boxes_of(file, category=3)


def test_an_id_however_it_is_written(write):
    """As in every field of annotations; a text that has leading zeros is a name."""
    bbox = [1, 2, 3, 4]
    for numbers in ((7, 12), (7.0, 12.0), ("7", "12"), ("7.0", "12.0"), ("0007", "00012")):
        file = write([{"image_id": number, "bbox": bbox} for number in numbers])
        assert found(file, "0007.jpg", "00012.jpg") == [[bbox], [bbox]], numbers
    file = write([{"image_id": number, "bbox": bbox} for number in ("0", "1", "1")])
    assert found(file, "a.jpg", "b.jpg") == [[bbox], [bbox, bbox]], "places"
    assert found({"7": [bbox], "0": []}, "7.jpg", "a.jpg") == [[bbox], []], "names of a mapping are no places"


def test_a_file_of_boxes_in_another_format_is_told_which(tmp_path):
    (tmp_path / "boxes.csv").write_text("image,x,y,width,height\n")
    with pytest.raises(ValueError, match=r"^boxes: .*boxes.csv: .*; a file of boxes, .* is a .json in COCO's format$"):
        with_finder(tmp_path / "boxes.csv", None)


def test_a_box_that_is_not_taken_still_counts_its_picture(write, caplog):
    """Else places would not begin with 0, or a picture seem unknown to the file."""
    bbox = [1, 1, 10, 10]
    entries = [{"image_id": number, "category_id": 1, "bbox": bbox} for number in range(2)]
    assert found(write([{**entries[0], "bbox": [1, 1, 0, 10]}, entries[1]]), "a.jpg", "b.jpg") == [[], [bbox]]
    assert len(caplog.records) == 1, "of the bad box"
    file = write([{**entries[0], "category_id": 2}, entries[1]])
    of_picture = boxes_of(file, 2, category=1)
    assert [len(of_picture(number, Picture(name, IMAGE))[0]) for number, name in enumerate(("a", "b"))] == [0, 1]


def test_frames_that_are_lost_have_no_place(tmp_path):
    """Whoever is told of them."""
    pytest.importorskip("av", reason="PyAV is not installed")
    source = [damaged_video(tmp_path / "clip.mp4"), tmp_path / "absent.png", Picture("a.png", IMAGE)]

    def numbers(source, left_out):
        return [found for _, found in with_boxes(source, lambda number, _: number, left_out)]

    told, untold = numbers(source, [].append), numbers(source[::2], None)
    assert told[:-1] == untold[:-1] == list(range(len(untold) - 1)) and len(untold) < 40
    assert (told[-1], untold[-1]) == (len(untold), len(untold) - 1), "a picture that cannot be read has a place"


@pytest.mark.parametrize(
    "document, message",
    [
        ({"predictions": []}, "expected a list of detections, or an object with a list 'annotations'"),
        (3, "expected a list of detections"),
        ({"annotations": [], "images": [{"id": 1}]}, "image 0 has no id or file_name"),
        ([{"image_id": 1, "bbox": [1, 1, 5, 5]}, {"image_id": 1, "bbox": [1, 1, 5]}], "entry 1 is no detection"),
        ([{"image_id": 1, "bbox": "1234"}], "entry 0 is no detection: .*bbox has 1 numbers, 4 are needed"),
        ([{"bbox": [1, 1, 5, 5]}], "entry 0 is no detection"),
        ([{"image_id": 1, "bbox": [1, 1, 5, 5], "score": "high"}], "entry 0 is no detection: .*score is 'high'"),
        ([{"image_id": 1, "bbox": [1, 1, 5, 5], "score": True}], "entry 0 is no detection: .*score is True"),
        ([{"image_id": 1.5, "bbox": [1, 1, 5, 5]}], "entry 0 is no detection: .*image_id is 1.5; a whole number"),
        (
            {
                "annotations": [{"image_id": 1, "bbox": [1, 1, 5, 5]}],
                "images": [{"id": 1, "file_name": None, "width": 30, "height": 20}],
            },
            "entry 0 is no detection: .*it names no picture",
        ),
    ],
)
def test_files_that_are_none(write, document, message):
    file = write(document)
    with pytest.raises(ValueError, match=message) as refused:
        boxes_of(file)
    assert str(file) in str(refused.value)
