"""One step serves all arms of the experiment, each with its own loss; keypoints fall into the cells that show them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from boir_jax.losses import LossConfig, Targets, embedding_loss
from configs import boir as configs
from pose_common.metrics.columns import Poses, write_results
from scripts.experiments import boir, lines, two_stages
from tests.scripts.experiments.test_crowds import CROWD, POINTS

SIDE, PEOPLE = 6, 2


def maps_and_targets():
    rng = np.random.default_rng(0)

    def random(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    dense = {name: random(1, SIDE, SIDE, size) for name, size in zip(("keypoints", "centre"), (3, 1), strict=True)}
    dense |= {"embedding": random(1, SIDE, SIDE, 4), "box": jnp.abs(random(1, SIDE, SIDE, 4))}
    ones, cells = jnp.ones((1, SIDE, SIDE, 1)), jnp.array([[[1, 1], [4, 4]]])
    boxes = jnp.array([[[0.0, 0, 3, 3], [2, 2, 3, 3]]])
    instance = random(1, PEOPLE, SIDE, SIDE, 3)
    valid = jnp.ones((1, PEOPLE), bool)
    targets = Targets(jnp.ones((1, SIDE, SIDE, 4)), ones, jnp.ones_like(instance), jnp.array(1.0), boxes, cells, valid)
    return dense, instance, targets


def test_every_arm_has_its_own_loss():
    inputs, losses = maps_and_targets(), configs.get_config("demo").losses
    of_arms = tuple(LossConfig(**{**losses, **arm}) for arm in boir.ARMS.values())
    method = boir.Arms(None, 1, None, of_arms[0], 1, 1, of_arms)
    weigh = jax.jit(lambda batch: method.weigh(*inputs, batch, None))
    values = []
    for number, own in enumerate(of_arms):
        found = jax.device_get(weigh({boir.ARM: jnp.full(1, number)}))
        dense, _, targets = inputs
        expected = embedding_loss(dense["embedding"], targets.boxes, targets.valid, own)
        # The same operations, compiled together or one by one: a few units in the last place.
        np.testing.assert_allclose(found["embedding"], own.embedding / own.images_per_device * expected, rtol=1e-5)
        values.append(float(found["embedding"]))
    assert values[0] == 0 and len(set(values)) == len(boir.ARMS) - len(boir.WITHOUT_BIAS), (
        "these differ only in how they begin"
    )


def test_keypoints_are_looked_up_where_they_are_seen():
    points = np.zeros((2, 3, 3))
    points[0, 0] = (10, 30, 2)  # seen
    points[0, 1] = (10, 30, 1)  # hidden
    points[1, 2] = (79, 0, 2)  # seen, at the map's edge
    points[1, 0] = (81, 0, 2)  # beyond the input
    half = np.array([[2.0, 0, 0], [0, 2, 0]])  # the input is half of the picture
    cells, person = boir.visible_cells(points, half, (10, 10))
    assert cells.tolist() == [[1, 3], [9, 0]] and person.tolist() == [0, 1]
    middle = boir.middles(np.array([[0.0, 0, 40, 56]]), half)
    cells, _ = boir.visible_cells(middle, half, (10, 10))
    assert sorted(cells.tolist()) == [[x, y] for x in (1, 2, 3) for y in (2, 3, 4)]


def test_tables_have_every_arm_and_its_difference():
    found = [
        {"arm": arm, "seed": seed, "seconds": 9.0, "figures": {"AP": 10 * number + seed}}
        for number, arm in enumerate(boir.ARMS)
        for seed in (1, 2)
    ]
    text = boir.tables(found)
    assert all(f"| {arm} | 9 | " in text for arm in boir.ARMS)
    assert "| image | 10.0 [10.0, 10.0] |" in text
    assert "(start)" not in text, "runs from nothing have no row of what they started from"
    found.append({"arm": boir.START, "seed": 0, "figures": {"AP": 3.0}})
    assert "| (start) |  | 3.0 |" in boir.tables(found)


def test_results_are_read_as_they_were_written(tmp_path):
    keypoints = np.random.default_rng(0).random((2, POINTS, 3))
    poses = Poses(np.array([3, 4]), np.arange(2), keypoints, np.array([0.5, 0.25]), np.ones(2), np.ones(2, int))
    write_results(tmp_path / "poses.json", poses, CROWD.keypoints)
    read = two_stages.read_poses(tmp_path / "poses.json")
    np.testing.assert_array_equal(read.keypoints, keypoints)
    assert read.image_id.tolist() == [3, 4] and read.score.tolist() == [0.5, 0.25]
    figures = dict.fromkeys(("AP", "AP(E)", "AP(M)", "AP(H)", "missed", "duplicates", "merged"), 1.0)
    text = two_stages.tables(
        [{"arm": arm, "seed": 0, "figures": figures, "groups": [figures] * 2} for arm in two_stages.ARMS]
    )
    assert all(arm in text for arm in two_stages.ARMS)


def test_seeds_on_the_same_pictures_are_no_further_pictures():
    def line(arm, seed, *scores):
        return {"arm": arm, "seed": seed, "groups": [{"AP": score} for score in scores]}

    groups = two_stages.by_group(
        [line("a", 0, 10.0, 20.0), line("a", 1, 14.0, 28.0), line("a", 2, 12.0, 24.0), line("b", 0, 11.0, 21.0)]
    )
    assert lines.values(groups, "AP", "a") == {0: 12.0, 1: 24.0}
    found = lines.paired(groups, "AP", "a", "b")
    assert (found.count, found.mean) == (2, 2.0), "of two groups, whatever the seeds"
