"""Batches of whole images from prepared records: contract, sharding, resume, evaluation by picture size."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import re

import numpy as np
import pytest

from data_pipelines.builders.coco import Coco
from data_pipelines.builders.synthetic import prepare_synthetic
from data_pipelines.reading import Reading
from data_pipelines.records import DatasetNotPrepared, load_annotations
from data_pipelines.sharing import Share
from data_pipelines.whole_image.loader import eval_loader, train_loader
from data_pipelines.whole_image.pictures import check_masks, rules_of, training_images
from tests.data_pipelines import tiny_sets
from tests.data_pipelines.whole_image_cases import RELEASED

DATASET = "synthetic_crowd"
DIRECT = Reading(num_threads=0)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("records")
    prepare_synthetic(path, [DATASET], num_train=6, num_val=5)
    return path


def loader(data_dir, **changes):
    settings = {"batch_size": 4, "input_size": 128, "seed": 3, "instances": 8, "reading": DIRECT}
    return train_loader(DATASET, data_dir=data_dir, augmentation=RELEASED, **(settings | changes))


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_a_split_of_nobody_is_not_trained_on(data_dir):
    annotations = load_annotations(DATASET, "train", data_dir)
    nobody = np.zeros_like(annotations.num_keypoints)
    unlabelled = dataclasses.replace(annotations, keypoints=np.zeros_like(annotations.keypoints), num_keypoints=nobody)
    for labelled_images in (False, True):
        rules = dataclasses.replace(rules_of(annotations.protocol), labelled_images=labelled_images)
        with pytest.raises(ValueError, match="split 'train': nobody in its 6 images has a keypoint to learn from"):
            training_images(unlabelled, rules, cap=8)


def test_a_picture_too_long_to_be_resized_is_refused_before_it_is_met(tmp_path):
    """Its short side would become the input's: 33000x64 gives 264000x512, and tens of gigabytes of features."""
    for height, refused in ((3, False), (2, True)):
        content = tiny_sets.document(2)
        content["images"][1] |= {"width": 48, "height": height}
        content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] == 1]
        path = tiny_sets.write_coco(tmp_path, content)
        files = {"annotations": path, "images": tmp_path / "coco/val2017"}
        Coco("val", **files, data_dir=tmp_path, progress=False).prepare(overwrite=True)
        said = r"coco \(val\): 000000000002.jpg is 48x2; the longer side may be 16 times .* and 1 of 2 pictures"
        with pytest.raises(ValueError, match=said) if refused else contextlib.nullcontext():
            eval_loader("coco", "val", data_dir=tmp_path, batch_size=1, input_size=64)


def test_masks_of_another_size_are_refused_before_they_are_met(data_dir):
    annotations = load_annotations(DATASET, "train", data_dir)
    check_masks(annotations)
    row, image = 3, annotations.image_index[3]
    size = [int(annotations.height[image]), int(annotations.width[image])]
    for given in (size, [size[0] + 1, size[1]], None):
        mask = annotations.mask.copy()
        mask[row] = json.dumps({"size": given, "counts": [size[0] * size[1]]})
        changed = dataclasses.replace(annotations, mask=mask)
        if given == size:
            check_masks(changed)
            continue
        name = f"image {str(annotations.file_name[image])!r}: the mask of annotation {annotations.id[row]} has the size"
        with pytest.raises(ValueError, match=re.escape(f"{name} {given}, the picture [height, width] = {size}")):
            check_masks(changed)


def test_batch_contract(data_dir):
    batch = next(loader(data_dir))
    expected = {
        "image": ((4, 128, 128, 3), np.uint8),
        "keypoints": ((4, 8, 14, 3), np.float32),
        "boxes": ((4, 8, 4), np.float32),
        "radius": ((4, 8), np.int32),
        "area": ((4, 8), np.float32),
        "sample_cell": ((4, 8, 2), np.int32),
        "has_centre": ((4, 8), np.bool_),
        "instance_valid": ((4, 8), np.bool_),
        "ignore": ((4, 32, 32), np.bool_),
    }
    assert {name: (value.shape, value.dtype) for name, value in batch.items()} == expected
    valid = batch["instance_valid"]
    assert valid.any()
    assert (batch["has_centre"] | ~valid).all()
    cells = batch["sample_cell"][valid]
    assert (cells >= 0).all() and (cells < 32).all()
    corners = batch["boxes"][..., :2] + batch["boxes"][..., 2:]
    assert (batch["boxes"] >= 0).all() and (corners < 31 + 1e-4).all()


def test_every_process_count_reads_the_same(data_dir):
    whole = take(loader(data_dir), 3)
    parts = [take(loader(data_dir, share=Share(i, 2)), 3) for i in range(2)]
    for step, batch in enumerate(whole):
        assert_equal(batch, {name: np.concatenate([part[step][name] for part in parts]) for name in batch})


def test_pictures_that_were_prepared_anew_are_told_where_a_run_goes_on(data_dir, tmp_path, caplog):
    """As many as before, so that the steps of an epoch tell nothing."""
    prepare_synthetic(tmp_path, [DATASET], num_train=6, num_val=0, seed=9)
    before, now = loader(data_dir), loader(tmp_path)
    assert before.num_examples == now.num_examples
    now.set_state(before.get_state())
    assert f"{DATASET} (train): not the data that the run was trained on" in caplog.text


def test_resume_and_epochs(data_dir):
    """The state restores exactly; an image is augmented afresh in each epoch."""
    first = loader(data_dir)
    batches = take(first, 2)
    state = first.get_state()
    following = next(first)
    again = loader(data_dir, reading=Reading(num_threads=2))
    again.set_state(state)
    assert_equal(next(again), following)
    again.close()
    assert not np.array_equal(batches[0]["image"], following["image"])
    other = next(loader(data_dir, seed=4))
    assert not np.array_equal(other["image"], batches[0]["image"])


def test_people_beyond_the_cap_are_logged(data_dir, caplog):
    annotations = load_annotations(DATASET, "train", data_dir)
    with caplog.at_level(logging.WARNING):
        training_images(annotations, rules_of(annotations.protocol), cap=1)
    assert "exceed the 1 instances" in caplog.text


@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_reads_every_image_once(data_dir, processes):
    loaders = [
        eval_loader(
            DATASET,
            "val",
            data_dir=data_dir,
            batch_size=2,
            input_size=128,
            share=Share(i, processes),
            reading=DIRECT,
        )
        for i in range(processes)
    ]
    batches = [list(loader) for loader in loaders]
    assert len({len(part) for part in batches}) == 1
    assert len(batches[0]) == len(loaders[0])
    shapes = [[batch["image"].shape for batch in part] for part in batches]
    assert all(part == shapes[0] for part in shapes)
    for shape in shapes[0]:
        assert min(shape[1:3]) == 128 and shape[1] % 64 == 0 and shape[2] % 64 == 0
    seen = np.concatenate([batch["image_id"][batch["valid"]] for part in batches for batch in part])
    assert sorted(seen) == sorted(load_annotations(DATASET, "val", data_dir).image_id)


def test_evaluation_batches_by_exact_size(data_dir):
    """Images of two sizes never share a batch, and the last of a size is filled with invalid rows."""
    loader = eval_loader(DATASET, "val", data_dir=data_dir, batch_size=2, input_size=128, reading=DIRECT)
    annotations = loader.annotations
    oblong = dataclasses.replace(annotations, width=np.where(np.arange(5) < 2, 400, 300), height=np.full(5, 200))
    loader.source.annotations = oblong
    assert [(size, rows, len(numbers)) for size, rows, numbers in loader.batches] == [
        ((192, 128), 2, 2),
        ((192, 128), 2, 1),
        ((256, 128), 2, 2),
    ]


def test_what_is_missing_is_named(data_dir, tmp_path):
    with pytest.raises(DatasetNotPrepared, match="prepare_data"):
        loader(tmp_path)
    with pytest.raises(ValueError, match="multiple of 32"):
        loader(data_dir, input_size=100)
