"""Finding pictures under moved folders; other formats than JPEG."""

from __future__ import annotations

import json
import unicodedata

import cv2
import numpy as np
import pytest
from PIL import Image

from data_pipelines import orientation
from data_pipelines.builders.checker import vote
from data_pipelines.fields import Fault
from data_pipelines.importers import pictures
from scripts import prepare_data
from tests.data_pipelines import tiny_sets


def test_ever_fewer_folders_of_a_name(tmp_path):
    path = tmp_path / "clip" / "A.png"
    path.parent.mkdir()
    path.write_bytes(b"")
    for name in ("clip/A.png", "/home/x/clip/A.png", "C:\\data\\clip\\A.png", str(path)):
        assert pictures.find(tmp_path, name) == path, name
    assert pictures.find(path.parent, "/elsewhere/A.png") == path
    assert pictures.find(tmp_path, "B.png") == tmp_path / "B.png"


def test_capitals_of_another_system(tmp_path):
    """Windows and Macs find IMG.JPG as img.jpg; of two that are so alike nobody knows which is meant."""
    path = tmp_path / "Clip" / "A.png"
    path.parent.mkdir()
    path.write_bytes(b"")
    for name in ("clip/a.PNG", "Clip/a.png", "/home/x/CLIP/A.PNG", "C:\\data\\clip\\a.png"):
        assert pictures.find(tmp_path, name) == path, name
    assert pictures.find(tmp_path, "clip/b.png") == tmp_path / "clip/b.png"
    path.with_name("a.png").write_bytes(b"")
    assert pictures.find(tmp_path, "clip/A.PNG") == tmp_path / "clip/A.PNG"
    assert pictures.find(tmp_path, "Clip/a.png") == path.with_name("a.png"), "as it is written"


def test_accents_of_another_system(tmp_path):
    """A copy of a Mac's folder may have some names in either form, with other capitals too."""
    apart, joined = (unicodedata.normalize(form, "Ödland/Übung.JPG") for form in ("NFD", "NFC"))
    path = tmp_path / apart.split("/")[0] / joined.split("/")[1]
    path.parent.mkdir()
    path.write_bytes(b"")
    for name in (apart, joined, apart.lower(), joined.lower(), f"/Users/x/{joined}"):
        assert pictures.find(tmp_path, name) == path, name


def test_names_of_addresses(tmp_path):
    """Which servers of label tools write into their exports; or the pictures were downloaded under them."""
    for written, stored in (("a%20é%231.png", "a é#1.png"), ("b é#1.png", "b%20%C3%A9%231.png")):
        (tmp_path / stored).write_bytes(b"")
        assert pictures.find(tmp_path, written) == tmp_path / stored
        assert pictures.find(tmp_path, f"https://server/data/{written}") == tmp_path / stored
    (tmp_path / "100%25.png").write_bytes(b"")
    assert pictures.find(tmp_path, "100%25.png") == tmp_path / "100%25.png", "as it is written"


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".tif", ".ppm"])
def test_other_formats_are_encoded_nearly_as_they_are(tmp_path, suffix):
    rows, columns = np.mgrid[:40, :60]
    image = np.stack([rows * 4, columns * 3, 255 - rows - columns], -1).astype(np.uint8)
    path = tmp_path / f"a{suffix}"
    assert cv2.imwrite(str(path), image)
    data, width, height, reencoded = pictures.read_as_jpeg(path)
    assert (width, height, reencoded) == (60, 40, True)
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    # Quality 95 on gradients is within a few levels; WebP has lost as much before.
    assert np.abs(decoded.astype(int) - image).max() <= (16 if suffix == ".webp" else 6)


def test_a_jpeg_is_kept_whatever_its_name(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(tiny_sets.jpeg(seed=1))
    assert pictures.read_as_jpeg(path) == (tiny_sets.jpeg(seed=1), tiny_sets.WIDTH, tiny_sets.HEIGHT, False)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK", "I;16"])
def test_all_kinds_of_pixels(tmp_path, mode):
    path = tmp_path / "a.tif"
    if mode == "I;16":
        Image.fromarray(np.full((8, 8), 0x80FF, np.uint16)).save(path)
    else:
        Image.fromarray(np.full((8, 8, 3), 128, np.uint8)).convert(mode).save(path)
    data, *_ = pictures.read_as_jpeg(path)
    grey = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert grey.shape == (8, 8, 3) and (mode in ("1", "P") or abs(int(grey.mean()) - 128) <= 2)


@pytest.mark.parametrize("content", [b"", b"no picture", "truncated", "float", None])
def test_what_is_no_picture_is_a_fault(tmp_path, content):
    path = tmp_path / "a.tif"
    if content == "float":
        Image.fromarray(np.ones((4, 4), np.float32)).save(path)
    elif content == "truncated":
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 50, 3), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:-2000])
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(Fault, match="missing image" if content is None else "unreadable image"):
        pictures.read_as_jpeg(path)
    if content not in ("float", "truncated"):
        with pytest.raises(Fault):
            pictures.size_of(path)


def test_the_orientation_tag_is_taken_along(tmp_path):
    image = Image.fromarray(np.zeros((20, 30, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "x" * 70_000  # too long for a JPEG, as descriptions of microscopes' TIFFs are
    image.save(tmp_path / "a.png", exif=exif)
    data, width, height, _ = pictures.read_as_jpeg(tmp_path / "a.png")
    assert (width, height) == (30, 20)
    (tmp_path / "b.jpg").write_bytes(data)
    assert Image.open(tmp_path / "b.jpg").getexif()[0x0112] == 6


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_every_orientation_of_every_format(tmp_path, suffix, tag):
    """Also of TIFF, whose pixels and size Pillow turns itself: once alone."""
    rows, columns = np.mgrid[:24, :40]
    as_stored = np.stack([rows * 8, columns * 5, 255 - rows - columns], -1).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = tag
    path = tmp_path / f"a{suffix}"
    Image.fromarray(as_stored).save(path, exif=exif, **({"lossless": True} if suffix == ".webp" else {}))
    data, width, height, _ = pictures.read_as_jpeg(path)
    assert (width, height) == pictures.size_of(path) == (40, 24) and orientation.tag_of(data) == tag
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    assert np.abs(decoded[..., ::-1].astype(int) - as_stored).max() <= 6  # quality 95 on gradients
    seen = orientation.upright(as_stored, tag)
    assert pictures.seen_size_of(path) == seen.shape[1::-1]
    np.testing.assert_array_equal(orientation.stored(seen, tag), as_stored)


def test_a_pgm_of_16_bits(tmp_path):
    cv2.imwrite(str(tmp_path / "a.pgm"), np.full((8, 8), 0x80FF, np.uint16))
    data, *_ = pictures.read_as_jpeg(tmp_path / "a.pgm")
    assert abs(int(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).mean()) - 128) <= 2


def kite_document(names):
    """COCO labels of three keypoints, a picture a name."""
    kind = {"id": 1, "name": "kite", "keypoints": ["a", "b", "c"]}
    content = tiny_sets.document(len(names)) | {"categories": [kind]}
    for entry in content["annotations"]:
        entry["keypoints"] = entry["keypoints"][:9]
    for image, name in zip(content["images"], names, strict=True):
        image["file_name"] = name
    return content


@pytest.mark.parametrize(
    ("first", "lost", "status"),
    [("/home/one/a.jpg", 2, prepare_data.HEAVY_LOSS), ("a.jpg", 1, 0), ("A.JPG", 2, prepare_data.HEAVY_LOSS)],
)
def test_names_that_end_alike_are_not_guessed(tmp_path, capsys, first, lost, status):
    """Of two people's a.jpg nobody knows whose it is; what is named as it lies there is that one."""
    content = kite_document([first, "/home/two/a.jpg", "/home/one/b.jpg"])
    (tmp_path / "labels.json").write_text(json.dumps(content))
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(tiny_sets.jpeg())
    command = ["custom", "--name=x", f"--annotations={tmp_path}", f"--data_dir={tmp_path / 'data'}"]
    assert prepare_data.main(command) == status
    said = capsys.readouterr().out
    assert f"ambiguous picture: {lost}" in said and f"instance lost with its image: {2 * lost}" in said
    assert " and ".join(sorted([first, "/home/two/a.jpg"])) + " would all be" in said


def test_two_names_that_are_one_picture_as_written_keep_it_twice(tmp_path, capsys):
    """Its path from the folder and its absolute path: nothing is guessed, so both entries have their people."""
    content = kite_document(["one/a.jpg", str(tmp_path / "one" / "a.jpg")])
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.jpg").write_bytes(tiny_sets.jpeg())
    (tmp_path / "labels.json").write_text(json.dumps(content))
    command = ["custom", "--name=x", f"--annotations={tmp_path / 'labels.json'}", f"--data_dir={tmp_path / 'data'}"]
    assert prepare_data.main(command) == 0
    assert "ambiguous" not in capsys.readouterr().out


def test_a_picture_that_claims_to_be_huge_says_nothing_of_the_others(tmp_path, monkeypatch):
    """Which way up a dataset is read is asked of every picture, before the check of each says what is wrong with it."""
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert vote(tmp_path / "a.png", {"width": 30, "height": 20}) is None
    (tmp_path / "b.png").write_bytes(b"no picture")
    assert vote(tmp_path / "b.png", {"width": 30, "height": 20}) is None
