"""Names in one spelling, and retrieval of namesakes: 1 where they coincide, chance where nothing is known."""

import numpy as np
import pytest

from data_pipelines.skeletons import KEYPOINT_SETS
from posebh_jax.same_keypoints import keypoint_similarity, retrieval, same_name

SKELETONS = [KEYPOINT_SETS[name].keypoints for name in ("coco", "aic", "mpii", "ap10k", "crowdpose")]


@pytest.mark.parametrize(
    "name, spelled",
    [
        ("left_shoulder", "left shoulder"),
        ("L_Shoulder", "left shoulder"),
        ("leftShoulder", "left shoulder"),
        ("Shoulder left", "left shoulder"),
        ("R_B_Paw", "right back paw"),
        ("top_head", "head top"),
        ("face-12", "face 12"),
        ("thorax", "thorax"),
    ],
)
def test_names_in_one_spelling(name, spelled):
    assert same_name(name) == spelled


def test_every_skeleton_keeps_its_keypoints_apart():
    for keypoints in KEYPOINT_SETS.values():
        assert len({same_name(name) for name in keypoints.keypoints}) == keypoints.num_keypoints


def _bank(rng, like=None):
    """Random prototypes of all skeletons [T, 3, 64]; with `like`, equal where the name is."""
    known = {}
    rows = []
    for names in SKELETONS:
        for name in names:
            fresh = rng.standard_normal((3, 64))
            rows.append(known.setdefault(same_name(name), fresh) if like else fresh)
    return np.stack(rows)


def test_namesakes_that_coincide_are_found():
    bank = _bank(np.random.default_rng(0), like="names")
    found = retrieval(bank * 7.0, SKELETONS)  # their length does not matter
    assert found["same_name_mrr"] == found["same_name_top1"] == 1.0
    flipped = bank * np.random.default_rng(1).choice([-1.0, 1.0], bank.shape[:2])[..., None]  # nor does their sign
    assert retrieval(flipped[:, ::-1], SKELETONS)["same_name_mrr"] == 1.0


def test_random_prototypes_find_them_by_chance():
    found = [retrieval(_bank(np.random.default_rng(seed)), SKELETONS) for seed in range(20)]
    mean = np.mean([one["same_name_mrr"] for one in found])
    # 20 banks of about 200 queries (half of them independent), 1 / rank deviates by 0.25: 0.25 / sqrt(2000) = 0.006.
    assert abs(mean - found[0]["same_name_chance"]) < 0.025
    assert found[0]["same_name_chance"] == pytest.approx(0.21, abs=0.02)  # harmonic mean of 14 to 17 candidates


def test_a_bank_of_equal_vectors_gains_nothing():
    found = retrieval(np.ones((sum(map(len, SKELETONS)), 2, 8)), SKELETONS)
    assert found["same_name_top1"] == 0.0 and found["same_name_mrr"] < 0.1


def test_only_pairs_that_exist_in_both_are_asked_about():
    two = [("nose", "left_eye"), ("neck", "nose", "tail")]
    bank = np.eye(5)[:, None]
    bank[3] = bank[0]
    # Nose finds nose; the eye, the neck and the tail have no namesake.
    assert retrieval(bank, two) == pytest.approx(
        {"same_name_mrr": 1.0, "same_name_top1": 1.0, "same_name_chance": (11 / 18 + 3 / 4) / 2}
    )
    assert retrieval(bank, two, asking=1)["same_name_chance"] == pytest.approx(3 / 4)
    assert retrieval(bank, [("a", "b"), ("c", "d", "e")]) == {}
    with pytest.raises(ValueError, match="5 keypoints"):
        retrieval(bank, [("a", "b"), ("c", "d")])


def test_similarity_is_symmetric_and_one_of_itself():
    found = keypoint_similarity(np.random.default_rng(0).standard_normal((6, 3, 8)))
    np.testing.assert_allclose(found, found.T, atol=1e-12)  # rounding of float64
    np.testing.assert_allclose(np.diag(found), 1.0, atol=1e-12)
