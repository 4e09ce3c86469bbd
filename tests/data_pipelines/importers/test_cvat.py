"""CVAT: points without skeletons, hidden ones, and what may be wrong with a file."""

from __future__ import annotations

import pytest

from data_pipelines.builders.report import RawDataError
from data_pipelines.importers import cvat

META = (
    "<meta><task><labels><label><name>mouse</name><type>skeleton</type></label>"
    "<label><name>nose</name><type>points</type><parent>mouse</parent></label>"
    "<label><name>tail</name><type>points</type><parent>mouse</parent></label></labels></task></meta>"
)


def write(folder, shapes, meta=META, image='<image id="0" name="a.png" width="64" height="48">'):
    path = folder / "annotations.xml"
    path.write_text(f"<annotations>{meta}{image}{shapes}</image></annotations>")
    return path


def skeleton(nose='points="1.5,2" outside="0"', tail='points="3,4" outside="0"'):
    return f'<skeleton label="mouse"><points label="nose" {nose}/><points label="tail" {tail}/></skeleton>'


def test_outside_is_not_labelled_and_occluded_is_hidden(tmp_path):
    shapes = skeleton('points="1.5,2" outside="0" occluded="1"', 'points="9,9" outside="1"')
    labels = cvat.read(write(tmp_path, shapes))
    (person,) = labels.document["annotations"]
    assert person["keypoints"] == [1.5, 2, 1, 0, 0, 0]
    assert [kind["name"] for kind in labels.document["categories"]] == ["mouse"]
    assert labels.document["images"][0]["width"] == "64", "to be compared with the picture's own"


def test_labels_in_another_order_are_the_same_keypoints(tmp_path):
    """As the file of another task has them: of a dataset that is defined, or asked for, the order stays."""
    path = write(tmp_path, skeleton('points="1,2"', 'points="3,4"'))
    for names, points in ((["tail", "nose"], [3, 4, 2, 1, 2, 2]), (["nose", "ear"], [1, 2, 2, 3, 4, 2])):
        labels = cvat.read(path, names=names)
        assert [entry["keypoints"] for entry in labels.document["annotations"]] == [points]
    assert labels.document["categories"][0]["keypoints"] == ["nose", "tail"], "others are told by who asks for them"


def test_the_subset_of_a_project_is_a_folder(tmp_path):
    labels = cvat.read(write(tmp_path, skeleton(), image='<image id="0" name="a.png" subset="Train">'))
    assert labels.document["images"][0]["file_name"] == "Train/a.png"


def test_points_of_a_group_or_of_one_shape_are_a_person(tmp_path):
    grouped = "".join(
        f'<points label="{name}" group_id="{group}" points="{group},{x}"/>'
        for group in (1, 2)
        for x, name in enumerate(("nose", "tail"))
    )
    labels = cvat.read(write(tmp_path, grouped, meta=""))
    assert [entry["keypoints"] for entry in labels.document["annotations"]] == [[1, 0, 2, 1, 1, 2], [2, 0, 2, 2, 1, 2]]
    labels = cvat.read(write(tmp_path, '<points label="mouse" points="1,2;3,4"/>', meta=""))
    assert labels.document["categories"][0]["keypoints"] == ["point_1", "point_2"]


def test_a_box_around_one_skeleton_is_its_own(tmp_path):
    box = '<box label="mouse" xtl="0" ytl="0" xbr="5" ybr="6"/>'
    (person,) = cvat.read(write(tmp_path, skeleton() + box)).document["annotations"]
    assert person["bbox"] == [0, 0, 5, 6]
    # Around two it is nobody's: then it is a person without keypoints.
    labels = cvat.read(write(tmp_path, skeleton() + skeleton('points="2,2"', 'points="4,4"') + box))
    assert [entry.get("bbox") for entry in labels.document["annotations"]] == [None, None, [0, 0, 5, 6]]


@pytest.mark.parametrize(
    "shape, said",
    [
        (skeleton('points="1;2"'), "wrong length"),
        (skeleton('points="1,x"'), "not a number"),
        (skeleton('outside="maybe" points="1,2"'), "not a flag"),
        (skeleton('points="1,2" occluded="2"'), "not a flag"),
        (skeleton().replace("tail", "nose"), "keypoint twice"),
        (skeleton().replace("tail", "whisker"), "unknown keypoint"),
        ('<polygon label="mouse" points="1,2;3,4;5,6"/>', "neither skeleton, points nor box: polygon"),
        ('<box label="mouse" xtl="0" ytl="0" xbr="5"/>', "missing field: ybr"),
        ('<box label="mouse" rotation="9" xtl="0" ytl="0" xbr="5" ybr="5"/>', "rotated region"),
        ('<box label="mouse" group_id="x" xtl="0" ytl="0" xbr="5" ybr="5"/>', "bad id"),
    ],
)
def test_a_broken_shape_is_named(tmp_path, shape, said):
    labels = cvat.read(write(tmp_path, skeleton() + shape))
    (broken,) = labels.broken
    assert str(broken.fault).startswith(said) and broken.entry == "image a.png, shape 2"
    assert broken.file.name == "annotations.xml" and len(labels.document["annotations"]) == 1


@pytest.mark.parametrize(
    "text, said",
    [
        ("<annotations>", "is not valid XML"),
        ("<other/>", "lists no images"),
        ('<annotations><track id="0"/><image/></annotations>', "CVAT for images 1.1"),
        (
            f"<annotations>{META}{META.replace('tail', 'ear').replace('mouse', 'rat')}<image/></annotations>",
            "different skeletons",
        ),
        (
            f"<annotations>{META.replace('skeleton</type>', 'skeleton</type><svg>&lt;a</svg>')}<image/></annotations>",
            "drawing",
        ),
    ],
)
def test_what_cannot_be_understood_names_the_file(tmp_path, text, said):
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(RawDataError, match=f"a.xml.*{said}"):
        cvat.read(tmp_path)


def test_one_file_a_folder(tmp_path):
    with pytest.raises(RawDataError, match="has 0 XML files"):
        cvat.read(tmp_path)
