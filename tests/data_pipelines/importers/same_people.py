"""The same people, written in every format that is read."""

from __future__ import annotations

import csv
import json
import pathlib
from collections.abc import Callable
from xml.etree import ElementTree

import cv2
import numpy as np

NAMES = ("Snout", "leftEar", "rightEar", "tail")
LIMBS = (("Snout", "leftEar"), ("Snout", "rightEar"), ("Snout", "tail"))
WIDTH, HEIGHT = 64, 48
Person = dict
"""`points`: float [4, 3], x, y, v (2 or 0); `box`: x, y, width, height."""


def random_people(seed: int, pictures: int = 4) -> dict[str, list[Person]]:
    """{file name: its people}: one to three in each but the last, which has nobody; all have two points or more."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[Person]] = {}
    for number in range(pictures):
        people = []
        for place in range(rng.integers(1, 4) if number < pictures - 1 else 0):
            # One beside the other, so that whoever a point belongs to is clear without groups as well.
            left, width = 21 * place, 20
            points = np.empty((4, 3))
            points[:, 0] = rng.uniform(left + 2, left + width - 2, 4)
            points[:, 1] = rng.uniform(5, HEIGHT - 5, 4)
            points[:, 2] = 2 * (rng.permutation(4) < rng.integers(2, 5))
            people.append({"points": points.round(3) * (points[:, 2:] > 0), "box": [left + 0.5, 3, width - 1, 42]})
        found[f"Clip_{number}.PNG"] = people
    return found


def write_pictures(folder: pathlib.Path, names) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        pixels = np.random.default_rng(number).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        assert cv2.imwrite(str(folder / name), pixels)


def labelled(person: Person):
    """(name, x, y) of the labelled points."""
    return [(name, x, y) for name, (x, y, v) in zip(NAMES, person["points"].tolist(), strict=True) if v > 0]


def write_coco(root, people, boxes):
    document = {
        "images": [],
        "annotations": [],
        "categories": [
            {
                "id": 1,
                "name": "object",
                "keypoints": list(NAMES),
                "skeleton": [[NAMES.index(a) + 1, NAMES.index(b) + 1] for a, b in LIMBS],
            }
        ],
    }
    for number, (name, found) in enumerate(people.items(), 1):
        document["images"].append({"id": number, "file_name": f"/home/Somebody/{name}", "width": WIDTH})
        for person in found:
            entry = {"id": len(document["annotations"]) + 1, "image_id": number, "category_id": 1}
            entry |= {"keypoints": person["points"].ravel().tolist()} | ({"bbox": person["box"]} if boxes else {})
            document["annotations"].append(entry)
    write_pictures(root / "images", people)
    (root / "labels.json").write_text(json.dumps(document))
    return root


def write_deeplabcut(root, people, boxes):
    assert not boxes
    count = max(map(len, people.values()))
    individuals = [f"mouse{place}" for place in range(count)]
    (root / "config.yaml").write_text(
        json.dumps(  # JSON is YAML
            {
                "scorer": "Ann",
                "multianimalproject": True,
                "bodyparts": "MULTI!",
                "multianimalbodyparts": NAMES,
                "skeleton": [["Snout", "leftEar"], ["rightEar", "Snout", "tail"]],
            }
        )
    )
    columns = [(individual, name, axis) for individual in individuals for name in NAMES for axis in "xy"]
    folder = root / "labeled-data" / "My Video"
    write_pictures(folder, people)
    with (folder / "CollectedData_Ann.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["scorer", "", "", *["Ann"] * len(columns)])
        for row, head in enumerate(("individuals", "bodyparts", "coords")):
            writer.writerow([head, "", "", *(column[row] for column in columns)])
        for name, found in people.items():
            cells = [
                "" if v == 0 else value for person in found for x, y, v in person["points"].tolist() for value in (x, y)
            ]
            writer.writerow(["labeled-data", "My Video", name, *cells, *[""] * (len(columns) - len(cells))])
    return root


def write_labelme(root, people, boxes):
    write_pictures(root / "pictures", people)
    (root / "json").mkdir()
    for name, found in people.items():
        shapes = []
        for group, person in enumerate(found):
            shapes += [
                {"label": part, "shape_type": "point", "points": [[x, y]], "group_id": group, "flags": {}}
                for part, x, y in labelled(person)
            ]
            if boxes:
                x, y, w, h = person["box"]  # drawn from the lower right corner
                corners = [[x + w, y + h], [x, y]]
                shapes.append({"label": "object", "shape_type": "rectangle", "points": corners, "group_id": group})
        document = {"version": "5.0", "flags": {}, "shapes": shapes, "imagePath": f"..\\pictures\\{name}"}
        document |= {"imageData": None, "imageHeight": HEIGHT, "imageWidth": WIDTH}
        (root / "json" / f"{name}.json").write_text(json.dumps(document))
    return root


def write_cvat(root, people, boxes):
    top = ElementTree.Element("annotations")
    meta = ElementTree.SubElement(top, "meta")
    label = ElementTree.SubElement(meta, "label")
    ElementTree.SubElement(label, "name").text = "object"
    drawing = [f'<circle data-node-id="{k}" data-label-name="{name}"></circle>' for k, name in enumerate(NAMES, 1)] + [
        f'<line data-node-from="{NAMES.index(a) + 1}" data-node-to="{NAMES.index(b) + 1}"></line>' for a, b in LIMBS
    ]
    ElementTree.SubElement(label, "svg").text = "".join(drawing)
    for name in NAMES:
        part = ElementTree.SubElement(meta, "label")
        ElementTree.SubElement(part, "name").text = name
        ElementTree.SubElement(part, "parent").text = "object"
    for number, (name, found) in enumerate(people.items()):
        size = {"width": str(WIDTH), "height": str(HEIGHT)}
        image = ElementTree.SubElement(top, "image", {"id": str(number), "name": name} | size)
        for group, person in enumerate(found, 1):
            shared = {"label": "object", "group_id": str(group)}
            skeleton = ElementTree.SubElement(image, "skeleton", shared)
            for part, (x, y, v) in zip(NAMES, person["points"].tolist(), strict=True):
                point = {"label": part, "points": f"{x},{y}", "occluded": "0", "outside": str(int(v == 0))}
                ElementTree.SubElement(skeleton, "points", point)
            if boxes:
                x, y, w, h = person["box"]
                corners = {"xtl": str(x), "ytl": str(y), "xbr": str(x + w), "ybr": str(y + h)}
                ElementTree.SubElement(image, "box", shared | corners)
    write_pictures(root / "images", people)
    ElementTree.ElementTree(top).write(root / "annotations.xml")
    return root


def write_label_studio(root, people, boxes):
    tasks = []
    size = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
    for number, (name, found) in enumerate(people.items(), 1):
        result = []
        for place, person in enumerate(found):
            box = f"box{place}"
            for part, x, y in labelled(person):
                value = {"x": 100 * x / WIDTH, "y": 100 * y / HEIGHT, "width": 0.5, "keypointlabels": [part]}
                result.append(size | {"id": f"{part}{place}", "type": "keypointlabels", "value": value})
                if boxes:
                    result[-1]["parentID"] = box
            x, y, w, h = np.array(person["box"]) * 100 / [WIDTH, HEIGHT, WIDTH, HEIGHT]
            value = {"x": x, "y": y, "width": w, "height": h, "rotation": 0, "rectanglelabels": ["object"]}
            result += [size | {"id": box, "type": "rectanglelabels", "value": value}] if boxes else []
        data = {"image": f"/data/upload/3/0a1b2c3d-{name}"}
        tasks.append({"id": number, "data": data, "annotations": [{"was_cancelled": False, "result": result}]})
    write_pictures(root, people)
    (root / "project.json").write_text(json.dumps(tasks))
    return root


def write_yolo_pose(root, people, boxes):
    assert boxes
    settings = {"path": "/content/datasets/mice", "train": "images/all", "names": {0: "object"}, "kpt_shape": [4, 3]}
    settings |= {"flip_idx": [0, 2, 1, 3], "kpt_names": {0: list(NAMES)}}
    (root / "data.yaml").write_text(json.dumps(settings))
    write_pictures(root / "images/all", people)
    (root / "labels/all").mkdir(parents=True)
    for name, found in people.items():
        lines = []
        for person in found:
            x, y, w, h = person["box"]
            points = person["points"] / [WIDTH, HEIGHT, 1]
            row = [0, (x + w / 2) / WIDTH, (y + h / 2) / HEIGHT, w / WIDTH, h / HEIGHT, *points.ravel().tolist()]
            lines.append(" ".join(f"{value:.9g}" for value in row))
        if lines:
            (root / "labels/all" / pathlib.Path(name).with_suffix(".txt")).write_text("\n".join(lines))
    return root


def write_mpii(root, people, boxes):
    assert not boxes
    entries = []
    for name, found in people.items():
        for person in found:
            visible = person["points"][:, 2] > 0
            joints = np.where(visible[:, None], person["points"][:, :2] + 1, -1)
            entries.append({"image": name, "joints": joints.tolist(), "joints_vis": visible.astype(int).tolist()})
    write_pictures(root / "images", people)
    (root / "train.json").write_text(json.dumps(entries))
    return root


WRITERS: dict[str, Callable] = {
    "coco": write_coco,
    "cvat": write_cvat,
    "deeplabcut": write_deeplabcut,
    "label_studio": write_label_studio,
    "labelme": write_labelme,
    "mpii": write_mpii,
    "yolo_pose": write_yolo_pose,
}
BOXED = ("coco", "cvat", "label_studio", "labelme", "yolo_pose")
UNBOXED = ("coco", "cvat", "deeplabcut", "mpii")
"""Those without label_studio and labelme: without boxes and groups, several people cannot be told apart there."""
SAYS_NO_NAMES = ("label_studio", "labelme", "mpii")
"""Formats that do not say the names of the keypoints, or not their order."""
EMPTY_LEFT_OUT = ("mpii",)
"""Formats that list people, and so no pictures without any."""
