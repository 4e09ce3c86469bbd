"""Finding people: peaks against recorded cases; the whole inference against the recorded poses."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from boir_jax.proposals import find_people, is_highest, predict, smooth
from pose_common.images import normalise_pixels
from tests.boir_jax.golden_weights import recorded_settings, tiny, weights
from tests.golden_files import golden, golden_config

pytestmark = pytest.mark.slow  # compiles whole-image inference

PROPOSALS = golden("boir/proposals.npz")
RECORD = golden("boir/full_infer.npz")
CONFIG = golden_config("boir/full_infer.npz")


def covering(cases: list[str]) -> list[str]:
    """Cases that have every setting of all at least once; each costs a compilation."""
    chosen, missing = [], {setting for case in cases for setting in case.split(":")}
    while missing:
        chosen.append(max(cases, key=lambda case: len(missing.intersection(case.split(":")))))
        missing.difference_update(chosen[-1].split(":"))
    return chosen


@pytest.mark.parametrize("case", golden_config("boir/proposals.npz")["cases"])
def test_peaks(case):
    """Map sizes on both sides of the window thresholds, with twin peaks that a larger window merges."""
    index, kernel, flip, maximum = case.split(":")
    maps = PROPOSALS[f"map{index[1:]}"].transpose(0, 2, 3, 1)
    centre = maps.mean(0, keepdims=True) if flip == "flip" else maps[:1]
    settings = golden_config("boir/proposals.npz")
    config = recorded_settings(settings, smoothing=int(kernel[1:]), maximum=int(maximum[3:]))
    people = find_people(smooth(centre, config.smoothing)[..., 0], config)
    count = int(people.found.sum())
    assert people.found[0, :count].all()
    # With the flip test the reference lists every person twice.
    expected = len(PROPOSALS[f"{case}:instance_score"]) // (2 if flip == "flip" else 1)
    assert count == expected
    np.testing.assert_array_equal(people.cells[0, :count, ::-1], PROPOSALS[f"{case}:instance_coord"][:count])
    expected_scores = PROPOSALS[f"{case}:instance_score"][:count]
    np.testing.assert_allclose(people.scores[0, :count], expected_scores, atol=1e-6)


def test_plateaus_and_empty_maps():
    """Equal neighbours are both kept; a map below the threshold has nobody in it."""
    config = recorded_settings(golden_config("boir/proposals.npz"))
    plateau = PROPOSALS["plateau:map"][:, 0]
    people = find_people(plateau, config)
    found = np.asarray(people.cells)[np.asarray(people.found)][:, ::-1]
    np.testing.assert_array_equal(sorted(found.tolist()), PROPOSALS["plateau:coord_yx_sorted"])
    assert not find_people(np.full((2, 8, 8), config.threshold / 2, np.float32), config).found.any()


def test_a_window_whose_maximum_was_rounded_otherwise_has_its_peak():
    """As where XLA compiles the map into the maximum and, once more, into the comparison with it; a neighbour of a peak
    is none for being as high but for rounding."""
    centre = np.full((1, 5, 9), 0.1, np.float32)
    centre[0, 2, [2, 3, 7]] = 0.5, np.nextafter(np.float32(0.5), np.float32(0)), 0.3
    highest = np.stack([centre[0, :, max(x - 1, 0) : x + 2].max() for x in range(9)])[None, None].repeat(5, 1)
    places = (0, 2, (2, 3, 7))
    assert is_highest(centre, highest, 3)[places].tolist() == [True, False, True]
    # Of two that are as high but for rounding nobody can tell which.
    assert is_highest(centre, np.nextafter(highest, np.float32(1)), 3)[places].tolist() == [True, True, True]


@pytest.mark.parametrize("threshold", [0.0, 0.1])
def test_a_map_of_fewer_cells_than_proposals(threshold):
    """What fills the rows up, and cells without anything, are nobody at the lowest threshold, too."""
    config = dataclasses.replace(
        recorded_settings(golden_config("boir/proposals.npz")), maximum=20, threshold=threshold
    )
    centre = np.zeros((2, 3, 4), np.float32)
    centre[1, 2, 3] = 0.5
    people = find_people(centre, config)
    assert people.cells.shape == (2, 20, 2) and people.scores.shape == people.found.shape == (2, 20)
    assert people.found.sum() == 1 and people.cells[1, 0].tolist() == [3, 2]


@functools.cache
def predictor(kernel: int, flip: bool):
    model = tiny(training_heads=False)
    variables = weights(model)
    config = recorded_settings(CONFIG, smoothing=kernel, flip=flip, maximum=CONFIG["MAX_PROPOSALS"])
    flip_index = np.array(CONFIG["FLIP_INDEX"])
    return jax.jit(lambda images: predict(model.bind(variables), normalise_pixels(images), flip_index, config))


@pytest.mark.parametrize("case", covering(CONFIG["cases"]))
def test_poses(case):
    size, kernel, flip = case.split(":")
    image = RECORD[f"{size}:image_u8"]
    poses = predictor(int(kernel[1:]), flip == "flip")(image[None])
    found = np.asarray(poses.found[0])
    expected = RECORD[f"{case}:poses"]
    assert found.sum() == len(expected)
    ours, scores = np.asarray(poses.keypoints[0])[found], np.asarray(poses.scores[0])[found]
    np.testing.assert_allclose(scores, RECORD[f"{case}:scores"], atol=1e-5)
    np.testing.assert_allclose(ours[..., 2], expected[..., 2], atol=1e-5)
    # Where two cells, or the neighbours that decide the shift, differ by rounding, the position is open.
    decided = (RECORD[f"{case}:margin"] > 1e-4) & (RECORD[f"{case}:shift_margin"] > 1e-4)
    assert decided.mean() > 0.9
    np.testing.assert_array_equal(ours[decided][:, :2], expected[decided][:, :2])


def test_batch_equals_one_by_one():
    size, kernel, flip = CONFIG["cases"][0].split(":")
    images = np.stack([RECORD[f"{size}:image_u8"], RECORD[f"{size}:image_u8"][::-1]])
    run = predictor(int(kernel[1:]), flip == "flip")
    together, alone = run(images), [run(image[None]) for image in images]
    for i, single in enumerate(alone):
        np.testing.assert_array_equal(together.found[i], single.found[0])
        found = np.asarray(single.found[0])
        np.testing.assert_allclose(together.keypoints[i][found], single.keypoints[0][found], atol=1e-5)
