"""Training losses of BoIR, over padded instances: no loop over people or images.

B images, N instance rows each (`valid` marks the real ones), maps [B, h, w, C]; boxes (x, y, w, h) and cells
(x, y) are in map cells. Every function returns the *per-device loss*: a local sum over a global count, so
that those of all devices add up to the loss of the global batch.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from boir_jax.heads import clamped_sigmoid
from pose_common.collectives import global_sum

# Losses are float32 products whatever the accelerator's default; they are a small part of a step.
_EXACT = jax.lax.Precision.HIGHEST
SMALLEST_HULL = 0.1
"""Diagonal of two boxes' common hull, in cells, that their distance is measured by at least."""


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights and choices: `config.losses` (the paper's numbers are in configs/boir.py).

    Attributes:
      heatmap, instance, embedding, box: weights of the four terms.
      background: what a person's embedding is pushed from: 'image', the mean of all cells outside every box,
        as one more member of the image; 'instance', for each box the mean of all cells outside it.
      pull: whether a box's centre embedding and the mean embedding of its person are pulled together.
      beta: sharpness of the similarities.
      images_per_device: the release divides every (already normalised) term by it once more. A constant, so
        that the loss does not depend on how many devices share a batch.
    """

    heatmap: float
    instance: float
    embedding: float
    box: float
    background: Literal["image", "instance"]
    pull: bool
    beta: float
    images_per_device: int

    def __post_init__(self) -> None:
        if self.background not in ("image", "instance"):
            raise ValueError(f"background must be 'image' or 'instance', not {self.background!r}")


class Targets(flax.struct.PyTreeNode):
    """What the maps of a batch should be; see `boir_jax.targets`.

    Attributes:
      dense: [B, h, w, K + 1] keypoint maps and, last, the centre map.
      dense_mask: [B, h, w, 1] 1 where they count.
      instance: [G, M, h, w, K] keypoint maps of the people given to the instance head.
      instance_mask: [G, M, 1, 1, K] 1 where they count.
      boxes: [B, N, 4]. cells: int32 [B, N, 2]. valid: bool [B, N].
    """

    dense: jax.Array
    dense_mask: jax.Array
    instance: jax.Array
    instance_mask: jax.Array
    boxes: jax.Array
    cells: jax.Array
    valid: jax.Array


def loss_terms(
    dense: dict[str, jax.Array],
    instance: jax.Array,
    targets: Targets,
    config: LossConfig,
    axis_name: str | None = None,
) -> dict[str, jax.Array]:
    """The four weighted terms; their sum is to be differentiated.

    Args:
      dense: raw maps `keypoints`, `centre`, `embedding`, `box` of the dense heads.
      instance: [G, M, h, w, K] raw maps of the instance head.
      targets: see `Targets`.
      config: see `LossConfig`.
      axis_name: mapped axis of devices, or None.
    """
    scores = clamped_sigmoid(jnp.concatenate([dense["keypoints"], dense["centre"]], axis=-1))
    boxes, valid = targets.boxes, targets.valid
    terms = {
        "heatmap": focal_loss(scores, targets.dense, targets.dense_mask, axis_name),
        "instance": focal_loss(clamped_sigmoid(instance), targets.instance, targets.instance_mask, axis_name),
        "embedding": embedding_loss(dense["embedding"], boxes, valid, config, axis_name),
        "box": box_loss(dense["box"], targets.cells, boxes, valid, axis_name),
    }
    return {name: getattr(config, name) / config.images_per_device * value for name, value in terms.items()}


def focal_loss(
    scores: jax.Array, targets: jax.Array, mask: jax.Array | float = 1.0, axis_name: str | None = None
) -> jax.Array:
    """Penalty-reduced focal loss (Law & Deng, ECCV 2018, eq. 1) with exponents 2 and 4.

    Divided by the number of unmasked cells whose target is exactly 1; not divided if there are none.

    Args:
      scores: in (0, 1). targets: same shape, in [0, 1]. mask: broadcastable, 1 where a cell counts.
      axis_name: mapped axis of devices, or None.
    """
    mask = jnp.broadcast_to(jnp.asarray(mask, jnp.float32), targets.shape)
    positive = jnp.where(targets == 1, mask, 0.0)
    present = jnp.log(scores) * jnp.square(1 - scores) * positive
    absent = jnp.log1p(-scores) * jnp.square(scores) * (1 - targets) ** 4 * mask
    count = global_sum(positive.sum(), axis_name)
    return -(present + absent).sum() / jnp.maximum(count, 1)


def box_loss(
    maps: jax.Array, cells: jax.Array, boxes: jax.Array, valid: jax.Array, axis_name: str | None = None
) -> jax.Array:
    """Mean CIoU loss of the boxes predicted at the 3x3 cells around every person's sampling cell.

    Args:
      maps: [B, h, w, 4] distances (left, top, right, bottom) from a cell to the box's sides.
      cells: int32 [B, N, 2]. boxes: [B, N, 4]. valid: bool [B, N].
      axis_name: mapped axis of devices, or None.
    """
    height, width = maps.shape[1:3]
    offsets = jnp.stack(jnp.meshgrid(jnp.arange(-1, 2), jnp.arange(-1, 2)), axis=-1).reshape(9, 2)
    around = cells[:, :, None, :] + offsets
    size = jnp.array([width, height])
    counts = valid[:, :, None] & jnp.all((around >= 0) & (around < size), axis=-1)

    at = jnp.clip(around, 0, size - 1)
    distances = jax.vmap(lambda image, cell: image[cell[..., 1], cell[..., 0]])(maps, at)
    predicted = jnp.concatenate([around - distances[..., :2], around + distances[..., 2:]], axis=-1)
    actual = jnp.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)[:, :, None, :]
    loss = jnp.where(counts, ciou_loss(predicted, actual), 0.0).sum()
    return loss / jnp.maximum(global_sum(counts.sum(), axis_name), 1)


def ciou_loss(predicted: jax.Array, actual: jax.Array, epsilon: float = 1e-10) -> jax.Array:
    """1 - complete IoU (Zheng et al., AAAI 2020) of corner boxes [..., (x1, y1, x2, y2)] in cells -> [...].

    As in the release `epsilon` widens heights and the union, and the trade-off weight of the aspect term is a
    constant to the gradient. That weight is 0/0 for identical boxes in float32; here it is 0.
    """
    px1, py1, px2, py2 = jnp.moveaxis(predicted, -1, 0)
    ax1, ay1, ax2, ay2 = jnp.moveaxis(actual, -1, 0)
    across = jnp.minimum(px2, ax2) - jnp.maximum(px1, ax1)
    down = jnp.minimum(py2, ay2) - jnp.maximum(py1, ay1)
    pw, ph = px2 - px1, py2 - py1 + epsilon
    aw, ah = ax2 - ax1, ay2 - ay1 + epsilon
    # Full gradient for boxes that just touch, so that they are drawn together (jnp.maximum would halve it).
    inter = jnp.where(across >= 0, across, 0.0) * jnp.where(down >= 0, down, 0.0)
    iou = inter / (pw * ph + aw * ah - inter + epsilon)

    hull_w = jnp.maximum(px2, ax2) - jnp.minimum(px1, ax1)
    hull_h = jnp.maximum(py2, ay2) - jnp.minimum(py1, ay1)
    # A box without extent beside a prediction as small would have a loss of 1e6 and a gradient of 1e8.
    diagonal = jnp.maximum(jnp.square(hull_w) + jnp.square(hull_h) + epsilon, SMALLEST_HULL**2)
    apart = (jnp.square(ax1 + ax2 - px1 - px2) + jnp.square(ay1 + ay2 - py1 - py2)) / 4
    aspect = 4 / math.pi**2 * jnp.square(jnp.arctan(aw / ah) - jnp.arctan(pw / ph))
    tradeoff = jax.lax.stop_gradient(aspect / jnp.maximum(aspect - iou + 1, 1e-7))
    return 1 - iou + apart / diagonal + tradeoff * aspect


def embedding_loss(
    embedding: jax.Array,
    boxes: jax.Array,
    valid: jax.Array,
    config: LossConfig,
    axis_name: str | None = None,
) -> jax.Array:
    """Box-mask loss (paper, section 3.2): people's embeddings differ from each other and from the background.

    All averages over map cells are products of [rows, cells] weights with the [cells, D] map; normalisation
    enters through the weights, so that no normalised copy of the map is made. Divided by the number of valid
    instances.

    Args:
      embedding: [B, h, w, D], not normalised.
      boxes: [B, N, 4]. valid: bool [B, N].
      config: `background`, `pull` and `beta` are used.
      axis_name: mapped axis of devices, or None.
    """
    batch, height, width, channels = embedding.shape
    cells = embedding.reshape(batch, height * width, channels)
    inverse_norm = jax.lax.rsqrt(jnp.maximum(jnp.square(cells).sum(-1), 1e-24))
    inside, used = box_masks(boxes, valid, (height, width))

    centre = jnp.floor(boxes[..., :2] + boxes[..., 2:] / 2).astype(jnp.int32)
    centre = jnp.clip(centre, 0, jnp.array([width, height]) - 1)
    index = centre[..., 1] * width + centre[..., 0]
    centres = jnp.take_along_axis(cells, index[..., None], axis=1)
    centres = centres * jnp.take_along_axis(inverse_norm, index, axis=1)[..., None]

    per_box = config.background == "instance"
    weights = {"outside": 1 - inside if per_box else 1 - inside.max(axis=1, keepdims=True)}
    if per_box or config.pull:
        weights["person"] = inside * _alikeness(centres, cells, inverse_norm, config.beta)
    means = _means(weights, cells, inverse_norm)

    loss = 0.0
    if per_box or config.pull:
        # Too little weight: nothing in the box resembles its centre, which then stands alone.
        resembles = weights["person"].sum(-1, keepdims=True) >= 1e-5
        average = jnp.where(resembles, (centres + means["person"]) / 2, centres)
        if config.pull:
            # Both members of a pair lie equally far from their average.
            loss += jnp.where(used, 2 * jnp.square(centres - average).mean(-1), 0.0).sum()
        if per_box:
            push = 1 + _similarity(average, means["outside"], config.beta)
            loss += jnp.where(used, push, 0.0).sum()
    members, present = centres, used
    if not per_box:
        background = used.any(1) & (weights["outside"].sum((1, 2)) > 0)
        members = jnp.concatenate([members, means["outside"]], axis=1)
        present = jnp.concatenate([present, background[:, None]], axis=1)
    loss += push_apart(members, present, config.beta).sum()
    return loss / jnp.maximum(global_sum(valid.sum(), axis_name), 1)


def _alikeness(centres: jax.Array, cells: jax.Array, inverse_norm: jax.Array, beta: float) -> jax.Array:
    """exp(-beta |c - e|^2), without gradient: unit vectors c [B, N, D], e = cells [B, C, D] * inverse_norm"""
    centres, cells, inverse_norm = jax.lax.stop_gradient((centres, cells, inverse_norm))
    cosine = jnp.einsum("bnd,bcd->bnc", centres, cells, precision=_EXACT) * inverse_norm[:, None]
    return jnp.exp(-2 * beta * jnp.maximum(1 - cosine, 0))


def _means(weights: dict[str, jax.Array], cells: jax.Array, inverse_norm: jax.Array) -> dict[str, jax.Array]:
    """Weighted means [B, R, D] of the normalised cells for weights [B, R, C], 0 where all are 0.

    One product for all: the map is by far the largest operand.
    """
    rows = jnp.concatenate(list(weights.values()), axis=1)
    sums = jnp.einsum("brc,bcd->brd", rows * inverse_norm[:, None], cells, precision=_EXACT)
    means = sums / jnp.maximum(rows.sum(-1, keepdims=True), 1e-5)
    ends = np.cumsum([part.shape[1] for part in weights.values()])
    return dict(zip(weights, jnp.split(means, ends[:-1], axis=1), strict=True))


def push_apart(members: jax.Array, present: jax.Array, beta: float) -> jax.Array:
    """0.5 / (n - 1) x sum over ordered pairs, the diagonal's n ones included, of their similarity.

    Args:
      members: [B, N, D]. present: bool [B, N], n of them true per image. beta: see `_similarity`.

    Returns:
      [B], 0 for images with fewer than two.
    """
    count = present.sum(1)
    pairs = present[:, :, None] & present[:, None, :]
    distinct = pairs & ~jnp.eye(present.shape[1], dtype=bool)
    similarity = _similarity(members[:, :, None], members[:, None, :], beta)
    total = jnp.where(distinct, similarity, 0.0).sum((1, 2)) + count
    return jnp.where(count > 1, 0.5 * total / jnp.maximum(count - 1, 1), 0.0)


def _similarity(a: jax.Array, b: jax.Array, beta: float) -> jax.Array:
    """exp(-beta x mean over channels of the squared difference)."""
    return jnp.exp(-beta * jnp.square(a - b).mean(-1))


def box_masks(boxes: jax.Array, valid: jax.Array, size: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """Cells of boxes grown by one cell; the last row and column never belong to one, as released.

    Args:
      boxes: [B, N, 4]. valid: bool [B, N]. size: (height, width) of the map.

    Returns:
      float32 [B, N, height * width] (0 or 1) and bool [B, N]: valid and at least two cells wide and high.
      Boxes that are not used have no cells.
    """
    limit = jnp.array(size[::-1]) - 1
    low = jnp.clip(boxes[..., :2].astype(jnp.int32) - 1, 0, limit)
    high = jnp.clip((boxes[..., :2] + boxes[..., 2:]).astype(jnp.int32) + 1, 0, limit)
    used = valid & jnp.all(high - low >= 2, axis=-1)

    def interval(axis: int) -> jax.Array:
        at = jnp.arange(size[1 - axis])
        return (at >= low[..., axis, None]) & (at < high[..., axis, None])

    inside = interval(1)[..., :, None] & interval(0)[..., None, :] & used[..., None, None]
    return inside.reshape(*valid.shape, size[0] * size[1]).astype(jnp.float32), used
