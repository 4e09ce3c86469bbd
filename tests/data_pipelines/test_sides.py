"""Left and right in names, as people write them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from data_pipelines import sides
from data_pipelines.skeletons import KEYPOINT_SETS

PARTS = ["eye", "ear", "shoulder", "front_paw", "knee"]
# Ways to write a part with a side; the side is given in its long and its short form.
WAYS = {
    "left_eye": lambda part, long, short: f"{long}_{part}",
    "l_eye": lambda part, long, short: f"{short}_{part}",
    "L-eye": lambda part, long, short: f"{short.upper()}-{part}",
    "left eye": lambda part, long, short: f"{long} {part.replace('_', ' ')}",
    "Left Eye": lambda part, long, short: f"{long} {part}".title(),
    "leftEye": lambda part, long, short: long + _camel(part),
    "LeftEye": lambda part, long, short: long.title() + _camel(part),
    "LEye": lambda part, long, short: short.upper() + _camel(part),
    "lEye": lambda part, long, short: short + _camel(part),
    "eye_right": lambda part, long, short: f"{part}_{long}",
    "eye.R": lambda part, long, short: f"{part}.{short.upper()}",
    "eyeR": lambda part, long, short: part.replace("_", "") + short.upper(),
    "EyeRight": lambda part, long, short: _camel(part) + long.title(),
    "eye (left)": lambda part, long, short: f"{part} ({long})",
    "LEFT_EYE": lambda part, long, short: f"{long}_{part}".upper(),
    "L_EYE": lambda part, long, short: f"{short}_{part}".upper(),
    "LEYE": lambda part, long, short: (short + part).upper(),
    "leye": lambda part, long, short: short + part,
    "Leye": lambda part, long, short: (short + part).capitalize(),
    "lefteye": lambda part, long, short: long + part,
    "eyel": lambda part, long, short: part + short,
    "lt_eye": lambda part, long, short: f"{short}t_{part}",
    "eye_l1": lambda part, long, short: f"{part}_{short}1",
    "左eye": lambda part, long, short: {"l": "左", "r": "右"}[short] + part,
}


def _camel(part: str) -> str:
    return part.title().replace("_", "")


def written(way: str, shuffle: np.random.Generator) -> tuple[list[str], tuple[tuple[int, int], ...]]:
    """(names in any order, with two of no side; the pairs)."""
    pairs = [[WAYS[way](part, *side) for side in (("left", "l"), ("right", "r"))] for part in PARTS]
    names = [*itertools.chain(*pairs), "nose", "tail_tip"]
    names = [names[place] for place in shuffle.permutation(len(names))]
    return names, tuple(sorted(tuple(sorted(map(names.index, pair))) for pair in pairs))


@pytest.mark.parametrize("way", WAYS)
def test_usual_ways_of_writing_sides(way):
    for seed in range(3):
        names, pairs = written(way, np.random.default_rng(seed))
        assert sides.mirror_pairs(names) == (pairs, [])
        # One half missing: its counterpart is listed, and nothing else changes.
        lost = pairs[seed][0]
        alone, rest = names[pairs[seed][1]], names[:lost] + names[lost + 1 :]
        found, listed = sides.mirror_pairs(rest)
        assert listed == [alone] and {frozenset((rest[a], rest[b])) for a, b in found} == {
            frozenset((names[a], names[b])) for a, b in pairs if a != lost
        }
        assert sides.unpaired(rest, found) == [alone]


def test_ways_may_be_mixed():
    names = ["left_eye", "right_eye", "LShoulder", "right_shoulder", "hipL", "R-Hip", "l_knee", "kneeRight"]
    assert sides.mirror_pairs(names) == (((0, 1), (2, 3), (4, 5), (6, 7)), [])


def test_two_sides_in_a_name_are_both_exchanged():
    names = ["left_eye_left_corner", "left_eye_right_corner", "right_eye_left_corner", "right_eye_right_corner"]
    assert sides.mirror_pairs(names) == (((0, 3), (1, 2)), [])


def test_what_is_no_side():
    names = ["nose", "leg", "lip", "tail", "rear", "head_top", "collar", "L4_vertebra_x", "ankle"]
    pairs, alone = sides.mirror_pairs(names)
    assert pairs == () and alone == ["L4_vertebra_x"]


@pytest.mark.parametrize(
    "names",
    [
        "left_eye right_eye", "LShoulder RShoulder", "eye.L eye.R", "hipL hipR", "leftEye rightEye", "lknee rknee",
        "kneel kneer", "L_F_Paw R_F_Paw", "左眼 右眼",
    ],
)  # fmt: skip
def test_the_side_of_each(names):
    left, right = names.split()
    assert sides.sides_of((left, "nose", right)) == ("left", "centre", "right")


def test_sides_without_a_counterpart():
    assert sides.sides_of(("left_eye", "lip", "rear", "left_eye_right_corner")) == (
        "left",
        "centre",
        "centre",
        "centre",
    )


def test_ambiguous_names_are_listed_not_guessed():
    names = ["left_eye", "right_eye", "eye_R"]
    pairs, alone = sides.mirror_pairs(names)
    assert pairs == ((0, 1),) and alone == ["eye_R"]
    assert sides.unpaired(["tip", "L_wing", "R_wing"], ((0, 1),)) == ["R_wing"]
    assert sides.unpaired(["tip", "L_wing", "R_wing"], ()) == ["L_wing", "R_wing"]


def test_pairs_against_their_names():
    names = ["left_eye", "right_eye", "left_ear", "right_ear", "port", "starboard"]
    assert sides.against_names(names, ((1, 0), (2, 3), (4, 5))) == []
    assert sides.against_names(names, ((0, 2), (1, 3), (4, 5))) == [(0, 2), (1, 3)]


@pytest.mark.parametrize("name", KEYPOINT_SETS)
def test_known_skeletons(name):
    """What the names say is what the publications say, for all but the points of faces, which are numbered."""
    skeleton = KEYPOINT_SETS[name]
    pairs, alone = sides.mirror_pairs(skeleton.keypoints)
    known = {tuple(sorted(pair)) for pair in skeleton.flip_pairs}
    assert set(pairs) <= known and alone == [] == sides.unpaired(skeleton.keypoints, skeleton.flip_pairs)
    assert all("face" in skeleton.keypoints[a] for a, _ in known - set(pairs))
