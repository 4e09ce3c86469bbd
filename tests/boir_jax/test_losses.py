"""Losses and their gradients against recorded numbers, and what must hold for any input."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from boir_jax.heads import clamped_sigmoid
from boir_jax.losses import LossConfig, box_loss, ciou_loss, embedding_loss, focal_loss, push_apart
from tests.golden_files import golden, golden_config
from tests.settings import LOSSES

# Names of the recorded levels: 0 is the setting of finetuning, 1 that of the other released models.
LEVELS = {
    "level0": dataclasses.replace(LOSSES, background="instance", pull=True),
    "level1": dataclasses.replace(LOSSES, background="image", pull=False),
}


jitted_embedding_loss = jax.jit(jax.value_and_grad(embedding_loss), static_argnums=3)


def recorded_level(name: str, config: dict) -> LossConfig:
    """A level with the recording's sharpness."""
    return dataclasses.replace(LEVELS[name], beta=config["AE_BETA"])


def last(maps: np.ndarray) -> np.ndarray:
    """[B, C, h, w] -> [B, h, w, C]."""
    return np.moveaxis(maps, 1, -1)


def pad_rows(rows: np.ndarray, counts: np.ndarray, cap: int) -> tuple[np.ndarray, np.ndarray]:
    """Concatenated rows of images -> [B, cap, ...] and valid [B, cap]."""
    valid = np.arange(cap) < counts[:, None]
    padded = np.zeros((len(counts), cap, *rows.shape[1:]), rows.dtype)
    padded[valid] = rows
    return padded, valid


@pytest.mark.parametrize("tag", ["nomask", "mapmask", "kptmask", "nopos", "nopos_mapmask", "zeromask"])
def test_focal_loss(tag):
    record = golden("boir/components.npz")
    masks = {"mapmask": "mask_map", "kptmask": "mask_kpt", "zeromask": "mask_zero"}
    name = masks.get(tag.removeprefix("nopos_"))
    mask = 1.0 if name is None else last(record[f"focal:{name}"])
    targets = last(record["focal:gt_nopos" if tag.startswith("nopos") else "focal:gt"])
    value, grad = jax.value_and_grad(focal_loss)(last(record["focal:pred"]), targets, mask)
    np.testing.assert_allclose(value, record[f"focal:{tag}:loss"], rtol=3e-5)
    np.testing.assert_allclose(grad, last(record[f"focal:{tag}:grad"]), rtol=1e-5, atol=1e-6)


def test_clamped_sigmoid():
    record = golden("boir/components.npz")
    value, pull_back = jax.vjp(clamped_sigmoid, record["sig:x"])
    np.testing.assert_allclose(value, record["sig:y"], rtol=1e-5)
    np.testing.assert_allclose(pull_back(jnp.ones_like(value))[0], record["sig:grad"], rtol=1e-5, atol=1e-7)


def corners(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)


def test_ciou_loss():
    """Disjoint, nested and touching boxes among them. 2e-6 is float32 noise."""
    record = golden("boir/components.npz")
    predicted, actual = record["iou:pred"], record["iou:gt"]

    def total(boxes):
        loss = ciou_loss(jnp.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], -1), corners(actual))
        return loss.sum(), loss

    grad, loss = jax.grad(total, has_aux=True)(predicted)
    np.testing.assert_allclose(loss, record["iou:ciou:loss64"][:, 0], atol=2e-6)
    np.testing.assert_allclose(grad, record["iou:ciou:grad64"], atol=2e-6)
    with_epsilon = ciou_loss(corners(predicted), corners(actual), epsilon=1e-7)
    np.testing.assert_allclose(with_epsilon, record["iou:ciou:loss_xyxy_eps1e-7"][:, 0], atol=2e-6)


def test_ciou_of_odd_boxes():
    """Identical boxes (0/0 in float32) and inverted ones, which an unconstrained head may predict."""
    record = golden("boir/components.npz")
    boxes = corners(record["iou:gt"])
    value, grad = jax.value_and_grad(lambda p: ciou_loss(p, boxes).sum())(boxes)
    np.testing.assert_allclose(value, 0, atol=1e-5)
    assert np.isfinite(grad).all()

    point, near = jnp.array([13.0, 9.0, 13.0, 9.0]), jnp.array([13.05, 9.05, 12.97, 8.97])  # a box clipped away
    value, grad = jax.value_and_grad(ciou_loss)(near, point)
    assert 0 <= value < 3 and np.abs(grad).max() < 10  # as of any other box that is missed; 2e6 and 1e8 without a bound

    inverted, actual = corners(record["iou:inverted:pred"]), corners(record["iou:inverted:gt"])
    np.testing.assert_allclose(ciou_loss(inverted, actual), record["iou:inverted:ciou64"][:, 0], rtol=1e-5)


def test_box_loss():
    """Recorded sums are divided by the cells of real people: the reference's 'dict' path."""
    record = golden("boir/bbox_loss.npz")
    config = golden_config("boir/bbox_loss.npz")
    counts = record["num_inst"]
    cap = counts.max() + 1  # with padding
    rows = np.repeat(counts > 0, record["rows_per_image"])
    cells, valid = pad_rows(record["coord_yx"][rows][:, ::-1].astype(np.int32), counts, cap)
    boxes, _ = pad_rows(record["boxes_xywh"][rows].astype(np.float32), counts, cap)
    value, grad = jax.jit(jax.value_and_grad(box_loss))(last(record["bbox_map"]), cells, boxes, valid)
    np.testing.assert_allclose(value, record["fixed:dict:bbox_loss"], atol=2e-6)
    # Gradients were recorded for the 'list' path, whose divisor counts the cells of a dummy person too.
    ratio = record["fixed:list:n_anchor_total"] / record["fixed:dict:n_anchor_total"]
    np.testing.assert_allclose(grad, last(record["fixed:list:grad_bbox_map"]) * ratio, atol=2e-6)
    level = recorded_level(f"level{config['BBOX_MASK_LOSS_BG_SAMPLE_LEVEL']}", config)
    embedding = jitted_embedding_loss(last(record["emb"]), boxes, valid, level)[0]
    np.testing.assert_allclose(embedding, record["fixed:dict:bbox_mask_loss"], atol=2e-6)


@pytest.mark.parametrize("name", [f"level{level}" for level in golden_config("boir/bbox_mask_loss.npz")["levels"]])
def test_embedding_loss(name):
    """Images without box or with skipped ones only, a box over the whole map, boxes beyond the border."""
    record = golden("boir/bbox_mask_loss.npz")
    level = recorded_level(name, golden_config("boir/bbox_mask_loss.npz"))
    boxes, maps = record["boxes"].astype(np.float32), last(record["emb"])
    counts = record["counts"]
    valid = np.arange(boxes.shape[1]) < counts[:, None]
    value, grad = jitted_embedding_loss(maps, boxes, valid, level)
    # The record is the sum over the batch; ours is per instance.
    np.testing.assert_allclose(value * counts.sum(), record[f"fixed:{name}:loss"], atol=2e-5)
    np.testing.assert_allclose(grad * counts.sum(), last(record[f"fixed:{name}:grad"]), atol=1e-6)

    for i, expected in enumerate(record[f"fixed:{name}:loss_per_image"]):
        only = valid & (np.arange(len(counts)) == i)[:, None]
        alone, _ = jitted_embedding_loss(maps, boxes, only, level)
        np.testing.assert_allclose(alone * counts[i], expected, atol=2e-5)


def test_embedding_loss_ignores_padding_and_order():
    """Padded rows may hold anything; neither they nor the order of people matter."""
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(2, 12, 16, 4)).astype(np.float32)
    boxes = np.concatenate([rng.uniform(0, 6, (2, 6, 2)), rng.uniform(2, 6, (2, 6, 2))], -1)
    boxes = boxes.astype(np.float32)
    valid = np.array([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]], bool)
    order = rng.permutation(6)
    for config in (
        *LEVELS.values(),
        dataclasses.replace(LOSSES, pull=True),
        dataclasses.replace(LOSSES, background="instance"),
    ):
        value, grad = jitted_embedding_loss(maps, boxes, valid, config)
        assert np.isfinite(grad).all()
        other = np.where(valid[..., None], boxes, np.float32(99))
        shuffled, _ = jitted_embedding_loss(maps, other[:, order], valid[:, order], config)
        np.testing.assert_allclose(value, shuffled, rtol=1e-5)


def test_zero_embedding_has_finite_gradient():
    boxes = jnp.array([[[1.0, 1, 4, 4]]])
    _, grad = jitted_embedding_loss(jnp.zeros((1, 8, 8, 4)), boxes, jnp.ones((1, 1), bool), LEVELS["level0"])
    assert np.isfinite(grad).all()


@pytest.mark.parametrize("beta", golden_config("boir/components.npz")["AE_BETA"])
def test_push_apart(beta):
    """The push-only form of the associative embedding loss."""
    record = golden("boir/components.npz")
    members = record["ae:inst"]

    def loss(members):
        return push_apart(members[None], jnp.ones((1, len(members)), bool), beta)[0]

    value, grad = jax.jit(jax.value_and_grad(loss))(members)
    np.testing.assert_allclose(value, record[f"ae:push_b{beta:g}:loss"], atol=1e-6)
    np.testing.assert_allclose(grad, record[f"ae:push_b{beta:g}:grad"], atol=1e-6)


def test_no_people_no_box_terms():
    """A batch without people has finite losses: counts of zero do not divide."""
    maps, boxes = jnp.ones((1, 8, 8, 4)), jnp.zeros((1, 3, 4))
    nobody, cells = jnp.zeros((1, 3), bool), jnp.zeros((1, 3, 2), jnp.int32)
    assert jax.jit(box_loss)(maps, cells, boxes, nobody) == 0
    for config in LEVELS.values():
        assert jitted_embedding_loss(maps, boxes, nobody, config)[0] == 0


def test_shares_of_devices_add_up():
    """Under a mapped axis every device returns its share of the global loss, whatever its own counts."""
    rng = np.random.default_rng(1)
    maps = rng.normal(size=(4, 8, 8, 4)).astype(np.float32)
    boxes = np.concatenate([rng.uniform(0, 3, (4, 3, 2)), rng.uniform(2, 5, (4, 3, 2))], -1)
    boxes = boxes.astype(np.float32)
    cells = rng.integers(0, 8, (4, 3, 2)).astype(np.int32)
    valid = np.array([[1, 1, 1], [0, 0, 0], [1, 0, 0], [1, 1, 0]], bool)
    targets = (rng.uniform(size=maps.shape) > 0.97).astype(np.float32)

    def losses(maps, targets, cells, boxes, valid, axis_name=None):
        return (
            focal_loss(clamped_sigmoid(maps), targets, 1.0, axis_name),
            box_loss(maps, cells, boxes, valid, axis_name),
            embedding_loss(maps, boxes, valid, LOSSES, axis_name),
        )

    rows = (maps, targets, cells, boxes, valid)
    whole = jax.jit(losses)(*rows)
    per_device = [array.reshape(4, 1, *array.shape[1:]) for array in rows]
    shares = jax.pmap(lambda *row: losses(*row, axis_name="device"), axis_name="device")(*per_device)
    for share, expected in zip(shares, whole, strict=True):
        np.testing.assert_allclose(share.sum(), expected, rtol=1e-5)


def test_unknown_background_is_refused():
    with pytest.raises(ValueError, match="background"):
        dataclasses.replace(LOSSES, background="box")
