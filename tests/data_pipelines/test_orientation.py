"""Pictures with an EXIF orientation are read as they were annotated, or it is said."""

from __future__ import annotations

import io
import json

import cv2
import numpy as np
import pytest
from PIL import Image

from data_pipelines import orientation, records
from data_pipelines.reading import Reading
from data_pipelines.top_down.crops import decode
from data_pipelines.top_down.loader import eval_loader
from data_pipelines.whole_image import loader as whole_image
from scripts import browse, prepare_data
from tests.data_pipelines import tiny_sets

RED = (20, 12)  # where the middle of the red square is in the upright picture
WIDTH, HEIGHT = 64, 40
DIRECT = Reading(num_threads=0)


def scene() -> np.ndarray:
    """The upright picture: grey, with a red square."""
    image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    image[RED[1] - 5 : RED[1] + 6, RED[0] - 5 : RED[0] + 6] = (255, 0, 0)
    return image


def camera(upright: np.ndarray, tag: int, endian: str = ">") -> bytes:
    """The JPEG of a camera that was held so that `tag` turns its pixels upright."""
    for undo in range(1, 9):
        stored = orientation.upright(upright, undo)
        if np.array_equal(orientation.upright(stored, tag), upright):
            break
    exif, data = Image.Exif(), io.BytesIO()
    exif.endian, exif[0x0112] = endian, tag
    Image.fromarray(stored).save(data, "jpeg", quality=98, exif=exif)
    return data.getvalue()


def write(folder, tags, sizes=None, split="train"):
    """A custom dataset with people annotated in the upright picture; `sizes`: annotated (width, height) of each."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    images, people = [], []
    for number, tag in enumerate(tags, start=1):
        (folder / "pictures" / f"{split}{number}.jpg").write_bytes(camera(scene(), tag))
        size = (WIDTH, HEIGHT) if sizes is None else sizes[number - 1]
        images.append(
            {"id": number, "file_name": f"{split}{number}.jpg"}
            | ({"width": size[0], "height": size[1]} if size else {})
        )
        keypoints = [*RED, 2, RED[0] + 10, RED[1] + 14, 1]
        people.append(
            {"id": number, "image_id": number, "category_id": 1, "bbox": [8, 2, 30, 34], "keypoints": keypoints}
        )
    kind = {"id": 1, "name": "flag", "keypoints": ["top", "bottom"], "skeleton": []}
    (folder / f"{split}.json").write_text(json.dumps({"images": images, "annotations": people, "categories": [kind]}))


def prepare(folder, *arguments, split="train"):
    status = prepare_data.main(
        [
            "custom",
            "--name=flags",
            f"--split={split}",
            f"--annotations={folder / split}.json",
            *arguments,
            f"--images={folder / 'pictures'}",
            f"--data_dir={folder / 'data'}",
        ]
    )
    return status, records.load_annotations("flags", split, folder / "data")


def colours(folder, split="train") -> np.ndarray:
    """[N, 3]: of the crops at the first keypoint."""
    batches = eval_loader("flags", split, data_dir=folder / "data", batch_size=4, input_size=(48, 64), reading=DIRECT)
    found = []
    for batch in batches:
        for image, points, valid in zip(batch["image"], batch["keypoints"], batch["valid"], strict=True):
            x, y = np.rint(points[0]).astype(int)
            found += [image[y, x]] if valid else []
    return np.array(found)


def is_red(found) -> np.ndarray:
    return (found[:, 0] > 180) & (found[:, 1] < 90)


@pytest.mark.parametrize("endian", "<>")
@pytest.mark.parametrize("tag", range(1, 9))
def test_pictures_are_turned_as_viewers_do(tag, endian):
    data = camera(scene(), tag, endian)
    assert orientation.tag_of(data) == tag
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    stored, shown = (cv2.imdecode(np.frombuffer(data, np.uint8), how) for how in (flags, cv2.IMREAD_COLOR))
    np.testing.assert_array_equal(orientation.upright(stored, tag), shown)
    assert orientation.turned(*stored.shape[1::-1], tag) == (WIDTH, HEIGHT)
    sample = {"size": (WIDTH, HEIGHT), "upright": True, "origin": ("flags", "train", "a.jpg"), "image_id": 1}
    np.testing.assert_array_equal(decode(data, sample), shown)


def test_a_damaged_exif_block_is_no_orientation():
    data = camera(scene(), 6)
    start, end = data.index(b"Exif"), data.index(b"Exif") + 40
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data)
        for place in rng.integers(start, end, 3):
            damaged[place] = rng.integers(256)
        assert orientation.tag_of(bytes(damaged)) in range(1, 9)
    for length in range(60):
        assert orientation.tag_of(data[:length]) in range(1, 9)


def test_sizes_tell_that_pictures_were_annotated_upright(tmp_path, capsys):
    """Two pictures tell; the others, upside down and mirrored, follow."""
    write(tmp_path, [1, 3, 6, 8, 2, 4, 5, 7])
    status, table = prepare(tmp_path)
    assert status == 0 and table.upright and table.num_images == 8
    assert "upright, as the annotated sizes tell; 7 of 8 pictures have an EXIF orientation" in capsys.readouterr().out
    assert set(zip(table.width.tolist(), table.height.tolist(), strict=True)) == {(WIDTH, HEIGHT)}
    assert is_red(colours(tmp_path)).all()
    (batch,) = whole_image.eval_loader(
        "flags", "train", data_dir=tmp_path / "data", batch_size=8, input_size=64, reading=DIRECT
    )
    for image, back in zip(batch["image"], batch["inverse_warp"], strict=True):
        x, y = np.rint(cv2.invertAffineTransform(back) @ [*RED, 1]).astype(int)
        assert is_red(image[y, x][None]).all()
    assert browse.main(["flags", f"--data_dir={tmp_path / 'data'}", "--split=train", f"--out={tmp_path / 'out'}"]) == 0


def test_sizes_tell_that_pictures_were_annotated_as_stored(tmp_path, capsys):
    write(tmp_path, [6, 3], [(HEIGHT, WIDTH), (WIDTH, HEIGHT)])
    status, table = prepare(tmp_path)
    assert status == 0 and not table.upright and table.num_images == 2
    assert "stored, as the annotated sizes tell; 2 of 2 pictures" in capsys.readouterr().out


def test_where_sizes_do_not_tell_it_is_said_and_can_be_chosen(tmp_path, capsys):
    write(tmp_path, [3, 1, 3])
    status, table = prepare(tmp_path)
    said = capsys.readouterr().out
    assert status == 0 and not table.upright
    assert "stored; 2 of 3 pictures have an EXIF orientation, which is not applied; --orientation=upright" in said
    assert is_red(colours(tmp_path)).tolist() == [False, True, False]
    assert prepare(tmp_path, "--orientation=upright")[0] == 1  # it is finished, otherwise
    assert "--orientation=stored" in capsys.readouterr().err
    status, table = prepare(tmp_path, "--orientation=upright", "--overwrite")
    assert status == 0 and table.upright and is_red(colours(tmp_path)).all()
    assert "upright; 2 of 3 pictures have an EXIF orientation, which is applied" in capsys.readouterr().out
    # A further split, whose sizes do not tell either, is read as the first.
    write(tmp_path, [3, 3], split="val")
    status, table = prepare(tmp_path, split="val")
    assert status == 0 and table.upright and is_red(colours(tmp_path, "val")).all()
    assert "upright, as train; 2 of 2" in capsys.readouterr().out


def test_splits_that_are_read_differently_are_named(tmp_path, capsys):
    write(tmp_path, [6])
    write(tmp_path, [6], [(HEIGHT, WIDTH)], split="val")
    assert prepare(tmp_path)[1].upright and not prepare(tmp_path, split="val")[1].upright
    assert "read otherwise than those of another split (stored here, upright there)" in capsys.readouterr().out


def test_pictures_without_annotated_size(tmp_path):
    write(tmp_path, [6, 1], [None, None])
    status, table = prepare(tmp_path, "--orientation=upright")
    assert status == 0 and table.width.tolist() == [WIDTH] * 2 and is_red(colours(tmp_path)).all()


def test_published_protocols_stay_as_stored(tmp_path, capsys):
    """A swapped size is a fault there, which says why; without orientations nothing is said."""
    content = tiny_sets.document(3)
    tiny_sets.write_coco(tmp_path, content)
    upright = np.full((tiny_sets.HEIGHT, tiny_sets.WIDTH, 3), 90, np.uint8)
    arguments = ["coco", f"--raw_dir={tmp_path}", f"--data_dir={tmp_path / 'data'}", "--overwrite"]
    assert prepare_data.main(arguments) == 0 and "EXIF" not in capsys.readouterr().out
    assert not records.load_annotations("coco", "val", tmp_path / "data").metadata
    for number, tag in ((2, 6), (3, 3)):
        (tmp_path / "coco/val2017" / f"{number:012d}.jpg").write_bytes(camera(upright, tag))
    assert prepare_data.main(arguments) == 0
    said = capsys.readouterr().out
    assert "image size differs: 1" in said and "EXIF orientation 6 is not applied (see --orientation)" in said
    assert "orientation: stored; 1 of 2 pictures have an EXIF orientation, which is not applied" in said
    assert prepare_data.main([*arguments, "--orientation=upright"]) == 0
    assert records.load_annotations("coco", "val", tmp_path / "data").num_images == 3
