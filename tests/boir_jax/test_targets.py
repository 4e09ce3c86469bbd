"""Targets drawn from coordinates, against the release's; the choice of people for the instance head."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from boir_jax.targets import choose_instances, gaussian_sides, make_targets
from data_pipelines.whole_image.pictures import gaussian_radius
from tests.data_pipelines.whole_image_cases import CASES, replay
from tests.golden_files import golden, golden_config

pytestmark = pytest.mark.slow  # compiles targets of many forms


@pytest.mark.parametrize("case", CASES)
def test_targets_drawn_on_the_device(case):
    """Joint, centre and instance maps from the element's coordinates alone."""
    element, record = replay(case)
    batch = {name: value[None] for name, value in element.items()}
    count = int(record["num_inst"])
    valid = batch["instance_valid"]
    image, row, chosen = choose_instances(np.ones(valid.shape, np.float32), valid, 1, valid.size)
    targets, cells = jax.jit(make_targets)(batch, image, row, chosen)
    np.testing.assert_allclose(np.moveaxis(targets.dense[0], -1, 0), record["multi_heatmap"], atol=1e-6)
    assert np.mean(targets.dense_mask[0, ..., 0] == record["mask"]) > 0.995
    assert chosen.sum() == count

    # Compared by sampling cell: the record lists smaller people first.
    place = {tuple(cell): i for i, cell in enumerate(np.asarray(cells[0])[np.asarray(chosen[0])].tolist())}
    for i in range(count):
        ours = place[tuple(record["instance_coord"][i, ::-1].tolist())]
        maps = np.moveaxis(targets.instance[0, ours], -1, 0)
        np.testing.assert_allclose(maps, record["instance_heatmap"][i], atol=1e-6)
        mask = targets.instance_mask[0, ours, 0, 0]
        np.testing.assert_array_equal(mask, record["instance_mask"][i, :, 0, 0])
    assert not np.asarray(targets.instance_mask)[~np.asarray(chosen)].any()


def test_single_gaussians():
    """One person at a time: coordinates in (-1, 0) and on the far border, radius 0, a box beyond the map."""
    record = golden("boir/components.npz")
    size = golden_config("boir/components.npz")["hmgen_output_res"]
    corners = record["hmgen:bbox_corners"]
    radius = gaussian_radius(np.clip(corners, 0, size - 1))
    rows, columns = gaussian_sides(jnp.asarray(record["hmgen:keypoints"], jnp.float32), radius, (size, size))
    maps = np.moveaxis(np.asarray(rows * columns), -1, 1)
    for person in range(len(corners)):
        np.testing.assert_allclose(maps[person], record[f"hmgen:single{person}"], atol=1e-6)
    np.testing.assert_allclose(maps.max(0), record["hmgen:heatmap"], atol=1e-6)


def test_choice_does_not_depend_on_devices():
    """Groups of a fixed number of images choose alike, on one device or on one each."""
    rng = np.random.default_rng(0)
    priority = rng.uniform(size=(8, 5)).astype(np.float32)
    valid = rng.uniform(size=(8, 5)) > 0.4
    image, row, chosen = (np.asarray(a) for a in choose_instances(priority, valid, group=2, cap=4))
    assert image.shape == (4, 4)
    for group in range(4):
        part = slice(2 * group, 2 * group + 2)
        alone = choose_instances(priority[part], valid[part], group=2, cap=4)
        for whole, single in zip((image, row, chosen), alone, strict=True):
            np.testing.assert_array_equal(whole[group], single[0])
        assert chosen[group].sum() == min(4, valid[part].sum())
        picked = list(zip(image[group][chosen[group]], row[group][chosen[group]], strict=True))
        assert len(set(picked)) == len(picked) and all(valid[part][pick] for pick in picked)
    with pytest.raises(ValueError, match="groups"):
        choose_instances(priority, valid, group=3, cap=4)
