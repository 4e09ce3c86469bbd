"""docs/your_own_dataset.md, followed literally; and what a custom skeleton may look like."""

from __future__ import annotations

import json
import pathlib
import pickle
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from boir_jax import sources
from data_pipelines import datasets as definitions
from data_pipelines import importers, sides
from data_pipelines.builders.custom import SkeletonOptions, define
from data_pipelines.reading import Reading
from data_pipelines.records import DatasetNotPrepared, load_annotations, open_records
from data_pipelines.skeletons import DEFAULT_SIGMA
from data_pipelines.top_down.loader import Entry, train_loader
from scripts import prepare_data
from tests.data_pipelines import tiny_sets
from tests.distribution import child_environment

pytestmark = pytest.mark.slow  # trains, evaluates and transfers by command

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "your_own_dataset.md"
NAMES = ["tip", "L_wing", "R_wing"]


def last_table(results):
    """The table of the last of a run's evaluations."""
    return max(results.glob("step_*/table.json"), key=lambda path: int(path.parent.name.removeprefix("step_")))


@pytest.mark.slow(minutes=1.5)
def test_the_page_followed_literally(tmp_path):
    """In a folder that has what a checkout has."""
    for entry in ROOT.iterdir():
        if not entry.name.startswith(".") and entry.name not in ("workdir", "data"):
            (tmp_path / entry.name).symlink_to(entry)
    # A home of its own keeps compiled programs from run to run.
    environment = child_environment(devices=1) | {"HOME": str(ROOT / ".cache" / "home")}
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 7
    for language, text in blocks:
        if language == "python":
            commands = [[sys.executable, "-c", text]]
        else:
            lines = [line.replace("python ", f"{sys.executable} ", 1) for line in text.splitlines()]
            commands = [["bash", "-c", line] for line in lines]
        for command in commands:
            done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    workdir = tmp_path / "workdir"
    assert {path.name for path in (workdir / "browse").iterdir()} == {
        f"puppets_val_{kind}.png" for kind in ("raw", "crops", "targets")
    }
    assert (workdir / "mixture/pictures/puppets_heads.png").exists()
    rows = json.loads(last_table(workdir / "mixture/results").read_text())["rows"]
    assert [row["dataset"] for row in rows] == ["synthetic_coco"] * 2 + ["puppets"] * 2
    (row,) = json.loads(last_table(workdir / "boir/results").read_text())["rows"]
    assert (row["dataset"], row["images"]) == ("puppets", 4) and "AP" in row["metrics"]
    assert (workdir / "boir/pictures/puppets_val.png").exists() and (workdir / "boir_poses/000012.png").exists()
    assert list(sources.read(workdir / "boir").manifest["definitions"]) == ["puppets"], "as a folder made of it has"
    rows = json.loads((workdir / "evaluation/results/step_1/table.json").read_text())["rows"]
    assert [row["dataset"] for row in rows] == ["puppets"] * 2
    assert rows[0]["images"] == 4 and rows[0]["instances"] > 0 and "AP" in rows[0]["metrics"]


def kites(**category):
    """A document with three keypoints nobody knows."""
    content = tiny_sets.document(2)
    for annotation in content["annotations"]:
        annotation["keypoints"] = annotation["keypoints"][:9]
    kite = {"id": 1, "name": "kite", "keypoints": NAMES, "skeleton": [[1, 2], [1, 3]]}
    return content | {"categories": [kite | category]}


def prepare(root, content, *arguments, split="train"):
    """The exit status of preparing `content` as dataset `kites`."""
    path = root / f"{split}.json"
    path.write_text(json.dumps(content))
    tiny_sets.write_pictures(root / "pictures", content["images"])
    command = [
        "custom",
        "--name=kites",
        f"--annotations={path}",
        f"--images={root / 'pictures'}",
        f"--split={split}",
    ]
    return prepare_data.main([*command, f"--data_dir={root / 'data'}", *arguments])


def test_names_limbs_and_defaults(tmp_path, capsys):
    assert prepare(tmp_path, kites()) == 0
    out = capsys.readouterr().out
    assert "no sigmas given" in out and str(DEFAULT_SIGMA) in out
    dataset = definitions.find_dataset("kites", tmp_path / "data")
    skeleton = dataset.keypoints
    assert (skeleton.keypoints, skeleton.limbs, skeleton.flip_pairs) == (
        tuple(NAMES),
        ((0, 1), (0, 2)),
        ((1, 2),),
    )
    assert skeleton.sigmas == (DEFAULT_SIGMA,) * 3 and dataset.codec == "udp" and not dataset.half_body
    annotations = load_annotations("kites", "train", tmp_path / "data")
    assert annotations.num_instances == 4
    assert annotations.to_coco()["annotations"][0]["keypoints"] == kites()["annotations"][0]["keypoints"]


def test_every_loader_finds_it_and_workers_get_it_pickled(tmp_path):
    assert prepare(tmp_path, kites()) == 0
    settings = {"batch_size": 4, "input_size": (24, 32), "seed": 0}
    batches = train_loader([Entry("kites")], data_dir=tmp_path / "data", reading=Reading(num_threads=1), **settings)
    assert next(batches)["keypoints"].shape == (4, 3, 2)
    batches.close()
    taken_along = pickle.dumps(definitions.find_dataset("kites", tmp_path / "data"))
    assert pickle.loads(taken_along).keypoints.keypoints == tuple(NAMES), "as in a worker process"
    with pytest.raises(KeyError, match="unknown dataset 'kites'.*custom --name=kites"):
        definitions.find_dataset("kites", tmp_path)


def test_what_is_given_counts(tmp_path, capsys):
    options = ["--sigmas=0.1,0.02,0.03", "--mirror=tip:L_wing", "--upper_body=tip", "--metric=hand"]
    assert prepare(tmp_path, kites(), *options) == 0
    assert "remark" not in capsys.readouterr().out
    dataset = definitions.find_dataset("kites", tmp_path / "data")
    skeleton = dataset.keypoints
    assert (skeleton.sigmas, skeleton.flip_pairs) == ((0.1, 0.02, 0.03), ((0, 1),))
    assert (skeleton.upper_body, skeleton.lower_body, dataset.half_body, dataset.metric) == (
        (0,),
        (1, 2),
        True,
        "hand",
    )
    # A further split keeps all that, and --overwrite what is not said anew.
    assert prepare(tmp_path, kites(), split="val") == 0
    assert definitions.find_dataset("kites", tmp_path / "data") == dataset
    assert prepare(tmp_path, kites(), "--sigmas=0.2", "--overwrite", split="val") == 0
    again = definitions.find_dataset("kites", tmp_path / "data")
    assert again.keypoints.sigmas == (0.2,) * 3 and again.keypoints.flip_pairs == ((0, 1),)


def test_another_split_changes_no_figures_of_a_finished_one(tmp_path, capsys):
    assert prepare(tmp_path, kites(), "--sigmas=0.1,0.02,0.03") == 0
    path = definitions.definition_path("kites", tmp_path / "data")
    text = path.read_text()
    assert prepare(tmp_path, kites(), "--sigmas=0.07", split="more") == 1
    assert "is defined with another --sigmas" in capsys.readouterr().err and path.read_text() == text
    nobody = kites()
    for annotation in nobody["annotations"]:
        annotation["keypoints"] = [0] * 9
    assert prepare(tmp_path, nobody, "--sigmas=0.09", "--overwrite", split="bad") == 1
    assert "no usable person" in capsys.readouterr().err and path.read_text() == text


@pytest.mark.parametrize(
    "option, said",
    [
        ("--sigmas=0.2", "is defined with another --sigmas; edit it, or --overwrite makes it again"),
        ("--mirror=tip:L_wing", "another --mirror"),
        ("--upper_body=tip", "another --upper_body"),
        ("--metric=hand", "another --metric"),
        ("--keypoints=a,b,c", "has other --keypoints; another skeleton needs a --name of its own"),
        ("--mirror=tip:tail", "'tail' is none of the keypoints"),
        ("--sigmas=0.1,0.2", "--sigmas: 3 keypoints need 3 positive sigmas"),
    ],
)
def test_what_a_finished_dataset_is_not_is_refused(tmp_path, capsys, option, said):
    first = (f"--sigmas=0.1,0.02,0.03 --mirror=L_wing:R_wing --metric=coco --keypoints={','.join(NAMES)}").split()
    assert prepare(tmp_path, kites(), *first) == 0
    defined = definitions.find_dataset("kites", tmp_path / "data")
    assert prepare(tmp_path, kites(), *first) == 0
    capsys.readouterr()
    assert prepare(tmp_path, kites(), option) == 1
    assert said in capsys.readouterr().err
    assert definitions.find_dataset("kites", tmp_path / "data") == defined


@pytest.mark.parametrize("options", [(), ("--sigmas=0.2",)])
def test_a_definition_that_is_gone_is_made_again(tmp_path, capsys, options):
    assert prepare(tmp_path, kites()) == 0
    path = definitions.definition_path("kites", tmp_path / "data")
    path.unlink()
    for split in ("train", "val"):
        assert prepare(tmp_path, kites(), *options, split=split) == 1
        assert f"no {path} any more: --overwrite makes both again" in capsys.readouterr().err
    assert prepare(tmp_path, kites(), *options, "--overwrite") == 0 and path.is_file()


def test_the_order_of_mirror_pairs_and_halves_says_nothing(tmp_path):
    assert prepare(tmp_path, kites(), "--mirror=L_wing:R_wing", "--upper_body=tip,L_wing") == 0
    defined = definitions.find_dataset("kites", tmp_path / "data")
    for split in ("train", "val"):
        assert prepare(tmp_path, kites(), "--mirror=R_wing:L_wing", "--upper_body=L_wing,tip", split=split) == 0
    assert definitions.find_dataset("kites", tmp_path / "data") == defined


@pytest.mark.parametrize("sigmas, told", [("0.26,0.79,0.79", True), ("0.025,0.2,0.107", False)])
def test_sigmas_that_everything_passes_by_are_told(tmp_path, capsys, sigmas, told):
    """As pycocotools lists them, before it divides by ten."""
    assert prepare(tmp_path, kites(), f"--sigmas={sigmas}") == 0
    assert ("sigmas of up to 0.79" in capsys.readouterr().out) == told


@pytest.mark.parametrize(
    "category, arguments, said",
    [
        ({"keypoints": []}, (), "no category lists 'keypoints'"),
        ({"keypoints": ["tip", "tip", "tail"]}, (), "names that differ"),
        ({"skeleton": [[1]]}, (), "bad keypoints or skeleton: not a list of pairs: skeleton is [[1]]; [[1, 2]"),
        ({"skeleton": [1, 2, 2, 3]}, (), "skeleton is [1, 2, 2, 3]; [[1, 2]"),
        ({"skeleton": {"tip": 1}}, (), "skeleton is {'tip': 1}; [[1, 2]"),
        ({"skeleton": [["tip", "tail"]]}, (), "skeleton is 'tip'; a whole number"),
        ({"keypoints": ["tip", None, "tail"]}, (), "not a name: keypoints lists None"),
        ({}, ("--sigmas=0.1,0.2",), "3 keypoints need 3 positive sigmas"),
        ({}, ("--sigmas=inf",), "3 keypoints need 3 positive sigmas"),
        ({}, ("--mirror=tip:tail",), "'tail' is none of the keypoints"),
        ({}, ("--mirror=tip:L_wing,tip:R_wing",), "two mirror pairs"),
        ({}, ("--name=coco",), "a new name"),
        ({}, ("--name=My Kites",), "a new name"),
    ],
)
def test_what_does_not_fit_is_said_and_leaves_nothing(tmp_path, capsys, category, arguments, said):
    assert prepare(tmp_path, kites(**category), *arguments) == 1
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("data/**/*.json"))


def test_the_advice_for_missing_data_is_a_command_that_works(tmp_path):
    """With what stands in <> filled in; of a split, and of a dataset that nobody has defined."""
    source = tmp_path / "labels"
    for error in (KeyError, DatasetNotPrepared):
        with pytest.raises(error) as missing:
            load_annotations("kites", "val", tmp_path / "my data")
        advice = re.search(
            r"python -m (scripts.prepare_data custom .*?--data_dir='[^']+'( --split=\w+)?)", str(missing.value)
        )
        arguments = shlex.split(advice[1].replace("<the labels' file or folder>", str(source)))[1:]
        source.mkdir(exist_ok=True)
        (source / "kites.json").write_text(json.dumps(kites()))
        tiny_sets.write_pictures(source, kites()["images"])
        assert prepare_data.main(arguments) == 0
    assert load_annotations("kites", "val", tmp_path / "my data").num_images == 2


def test_people_of_whom_a_box_alone_is_drawn_are_masked_by_it(tmp_path):
    """So that BoIR does not learn that nobody is there."""
    content = kites()
    content["annotations"][1] |= {"keypoints": [0] * 9, "num_keypoints": 0}
    content["annotations"][2] |= {"iscrowd": 1}
    content["annotations"][3] |= {"keypoints": [0] * 9, "num_keypoints": 0, "segmentation": [[1, 1, 9, 1, 9, 9]]}
    assert prepare(tmp_path, content, "--allow_loss") == 0
    masks = [json.loads(text) if text else None for text in load_annotations("kites", "train", tmp_path / "data").mask]
    boxes = [
        [x, y, x + width, y, x + width, y + height, x, y + height]
        for x, y, width, height in (content["annotations"][index]["bbox"] for index in (1, 2))
    ]
    assert masks == [None, [boxes[0]], [boxes[1]], [[1, 1, 9, 1, 9, 9]]]


def test_categories_of_the_same_keypoints_may_have_other_limbs(tmp_path, capsys):
    """Which are drawn alone; label tools write them of one category, or of each as far as they were drawn."""
    content = kites()
    (kite,) = content["categories"]
    content["categories"] = [kite | {"skeleton": [[1, 2]]}, kite | {"id": 40, "skeleton": [[1, 3], [1, 2]]}]
    content["categories"].append(kite | {"id": 41, "skeleton": None})
    assert prepare(tmp_path, content) == 0
    assert definitions.find_dataset("kites", tmp_path / "data").keypoints.limbs == ((0, 1), (0, 2))
    content["categories"][1] |= {"keypoints": NAMES[::-1]}
    assert prepare(tmp_path, content, "--overwrite") == 1
    assert "categories with different keypoints are datasets apart" in capsys.readouterr().err


def test_limbs_of_keypoints_that_are_not_there_cost_themselves(tmp_path, capsys):
    """Label tools count on over several skeletons, or keep the limbs of points that were deleted."""
    assert prepare(tmp_path, kites(skeleton=[[1, 2], [32, 33], [3, 4], [-1, 2], [1, 3]])) == 0
    assert definitions.find_dataset("kites", tmp_path / "data").keypoints.limbs == ((0, 1), (0, 2))
    assert "remark: 3 of 5 limbs are of keypoints beyond the 3 (left out)" in capsys.readouterr().out


def test_splits_have_the_same_keypoints(tmp_path, capsys):
    assert prepare(tmp_path, kites()) == 0
    assert prepare(tmp_path, kites(keypoints=["tip", "R_wing", "L_wing"]), split="val") == 1
    assert "has the keypoints" in capsys.readouterr().err
    assert definitions.find_dataset("kites", tmp_path / "data").keypoints.keypoints == tuple(NAMES)


def test_a_damaged_definition_names_its_file_and_field(tmp_path):
    skeleton = definitions.KeypointSet("kites", tuple(NAMES), ((1, 2),), sigmas=(0.05,) * 3)
    definitions.save_definition(definitions.PoseDataset("kites", "kites", skeleton=skeleton), tmp_path)
    path = definitions.definition_path("kites", tmp_path)
    content = json.loads(path.read_text())
    for damage in (
        {"codec_": 1},
        {"metric": "pck"},
        {"area": "bocks"},
        {"drop_unlabelled_by": "nerver"},
        {"half_body": "false"},
        {"padding": "1.25"},
        {"padding": -1},
        {"rotation_factor": True},
        {"scale_factor": 1.0},
    ):
        path.write_text(json.dumps(content | damage))
        with pytest.raises(ValueError, match=rf"kites.dataset\.json.*{next(iter(damage))}"):
            definitions.find_dataset("kites", tmp_path)
    for damage in (
        {"keypoints": "abc"},
        {"joints": []},
        {"flip_pairs": [[0, 9]]},
        {"flip_pairs": [[0, 1, 2]]},
        {"flip_pairs": 3},
        {"limbs": [0, 1]},
        {"upper_body": ["tip"]},
        {"parts": [["wings", 1, 9]]},
        {"parts": [[1, 9]]},
        {"sigmas": []},
        {"sigmas": ["0.05"] * 3},
    ):
        path.write_text(json.dumps(content | {"skeleton": content["skeleton"] | damage}))
        with pytest.raises(ValueError, match=r"kites.dataset\.json.*(skeleton\.|mirror pair|joints)"):
            definitions.find_dataset("kites", tmp_path)
    path.write_text(json.dumps(content | {"metric": "hand", "skeleton": content["skeleton"] | {"sigmas": []}}))
    assert not definitions.find_dataset("kites", tmp_path).keypoints.sigmas, "which PCK does not need"


def test_a_copied_folder_is_not_read_as_the_one_it_was_copied_from(tmp_path):
    assert prepare(tmp_path, kites()) == 0
    shutil.copytree(tmp_path / "data/kites", tmp_path / "data/dragons")
    with pytest.raises(ValueError, match=r"dragons.dataset\.json defines 'kites': set its name to 'dragons'"):
        definitions.find_dataset("dragons", tmp_path / "data")
    path = definitions.definition_path("dragons", tmp_path / "data")
    path.write_text(path.read_text().replace('"name": "kites"', '"name": "dragons"', 1))
    shutil.rmtree(tmp_path / "data/kites")
    assert definitions.find_dataset("dragons", tmp_path / "data").name == "dragons"
    assert len(open_records("dragons", "train", tmp_path / "data")) == 2


def test_mirror_pairs_from_names(tmp_path):
    def defined(*names):
        labels = importers.Labels({"categories": [{"id": 1, "keypoints": list(names)}]}, tmp_path)
        dataset, remarks = define("kites", labels, tmp_path / "labels", tmp_path, SkeletonOptions(sigmas=[0.05]))
        return dataset.keypoints, remarks

    skeleton, remarks = defined(
        "nose",
        "left_eye",
        "right_eye",
        "R_Paw",
        "L_Paw",
        "eye-left",
        "eye-right",
        "LeftHand",
        "RightHand",
        "leg",
        "l_ear",
    )
    assert skeleton.flip_pairs == ((1, 2), (3, 4), (5, 6), (7, 8)) and remarks == []
    assert sides.unpaired(skeleton.keypoints, skeleton.flip_pairs) == ["l_ear"]
    skeleton, remarks = defined("wrist", "tip")
    assert skeleton.flip_pairs == ()
    assert remarks == ["no mirror pairs in the names: keypoints keep their names in mirrored pictures"]
