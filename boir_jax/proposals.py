"""Finding people in a centre map and reading their poses: fixed shapes, for batches of images of one size.

P = proposals per image; `found` marks those above the threshold. Cells are (x, y) of the stride-4 map.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from boir_jax.heads import clamped_sigmoid
from pose_common.heatmaps import about, decode_quarter_shift


@dataclasses.dataclass(frozen=True)
class ProposalConfig:
    """How people are found: `config.proposals` and `config.smoothing` (the released numbers are in configs/boir.py).

    Attributes:
      maximum: proposals per image.
      threshold: smallest centre score.
      smoothing: side of the window whose mean is averaged into centre and keypoint maps (11 for OCHuman).
      windows: (largest mean of height and width, side of the peak window), in order; beyond all of them,
        `last_window`.
      last_window: see `windows`.
      flip: whether to average over the image and its mirror image.
    """

    maximum: int
    threshold: float
    smoothing: int
    windows: tuple[tuple[float, int], ...]
    last_window: int
    flip: bool


class Proposals(flax.struct.PyTreeNode):
    """Peaks of centre maps, best first: cells int32 [B, P, 2], scores [B, P], found bool [B, P]."""

    cells: jax.Array
    scores: jax.Array
    found: jax.Array


class Poses(flax.struct.PyTreeNode):
    """People in input pixels.

    Attributes:
      keypoints: [B, P, K, 3] x, y and keypoint peak x centre score.
      scores: [B, P] mean keypoint score.
      found: bool [B, P]; rows without are meaningless.
    """

    keypoints: jax.Array
    scores: jax.Array
    found: jax.Array


def smooth(maps: jax.Array, side: int) -> jax.Array:
    """Mean of maps [B, h, w, C] and their side x side box mean; zeros beyond the border count."""
    mean = nn.avg_pool(maps, (side, side), padding=((side // 2, side // 2),) * 2, count_include_pad=True)
    return (maps + mean) / 2


def find_people(centre: jax.Array, config: ProposalConfig) -> Proposals:
    """Peaks of smoothed centre maps [B, h, w]; equal neighbours are both peaks. Maps under P cells are padded."""
    batch, height, width = centre.shape
    extent = (height + width) / 2
    side = next((side for limit, side in config.windows if extent <= limit), config.last_window)
    found = is_highest(centre, _window_maximum(centre, side), side)
    peaks = jnp.where(found, centre, 0.0).reshape(batch, height * width)
    scores, index = jax.lax.top_k(peaks, min(config.maximum, height * width))
    if missing := config.maximum - scores.shape[1]:
        scores, index = (jnp.pad(found, ((0, 0), (0, missing))) for found in (scores, index))
    cells = jnp.stack([index % width, index // width], axis=-1).astype(jnp.int32)
    return Proposals(cells, scores, scores > config.threshold)


def is_highest(centre: jax.Array, highest: jax.Array, side: int) -> jax.Array:
    """Cells of maps [B, h, w] that equal the maximum of their window; in windows where none does, those `about` it."""
    exact = centre == highest
    settled = _window_maximum(exact.astype(jnp.float32), side) > 0
    return exact | about(centre, highest) & ~settled


def _window_maximum(maps: jax.Array, side: int) -> jax.Array:
    """Of the side x side window around each cell of maps [B, h, w]."""
    return nn.max_pool(maps[..., None], (side, side), padding=((side // 2, side // 2),) * 2)[..., 0]


def read_poses(maps: jax.Array, proposals: Proposals) -> Poses:
    """Smoothed keypoint maps [B, P, h, w, K] of the proposals -> poses."""
    batch, people, height, width, keypoints = maps.shape
    coords, peak = decode_quarter_shift(maps.reshape(batch * people, height, width, keypoints), per_axis=True)
    score = peak.reshape(batch, people, keypoints) * proposals.scores[..., None]
    pixels = 4 * coords.reshape(batch, people, keypoints, 2) + 2
    return Poses(jnp.concatenate([pixels, score[..., None]], axis=-1), score.mean(-1), proposals.found)


def predict(model: nn.Module, images: jax.Array, flip_index: jax.Array, config: ProposalConfig) -> Poses:
    """People in normalised images [B, H, W, 3] of one size (multiples of 64).

    Args:
      model: a bound `BoIR`.
      images: nothing may be padded: the neck pools whole images and the instance head normalises over them.
      flip_index: int [K], the mirrored keypoint of each.
      config: see `ProposalConfig`.
    """
    views = 2 if config.flip else 1
    stacked = jnp.concatenate([images, images[:, :, ::-1]]) if config.flip else images
    features = model.features(stacked, False)
    batch = images.shape[0]
    if config.flip:
        # Mirrored back before the heads, as released: they see the mirror image in the original frame.
        plain, mirrored = jnp.split(features, 2)
        features = jnp.concatenate([plain, mirrored[:, :, ::-1]])
    centre = clamped_sigmoid(model.dense(features, False)["centre"])
    centre = centre.reshape(views, batch, *centre.shape[1:]).mean(0)
    proposals = find_people(smooth(centre, config.smoothing)[..., 0], config)

    cells = jnp.tile(proposals.cells, (views, 1, 1))
    own_image = jnp.zeros(cells.shape[:2], jnp.int32)
    maps = clamped_sigmoid(model.instance_maps(features[:, None], own_image, cells))
    if config.flip:
        plain, mirrored = jnp.split(maps, 2)
        maps = 0.5 * (plain + mirrored[..., flip_index])
    people = maps.shape[1]
    maps = smooth(maps.reshape(batch * people, *maps.shape[2:]), config.smoothing)
    return read_poses(maps.reshape(batch, people, *maps.shape[1:]), proposals)
