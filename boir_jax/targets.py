"""Targets drawn on the device from a whole-image batch's padded coordinates.

Coordinates and boxes are in map cells, (x, y); a coordinate belongs to the cell of its truncated value
(towards zero, as in the release: -0.6 lies in cell 0). A person's Gaussians are separable, so that one is
kept as a row and a column.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from boir_jax.losses import Targets


def centres(keypoints: jax.Array) -> jax.Array:
    """Mean (x, y) [..., 2] of the labelled keypoints of people [..., K, 3], (0, 0) without any."""
    labelled = keypoints[..., 2:] > 0
    total = jnp.where(labelled, keypoints[..., :2], 0.0).sum(-2)
    return total / jnp.maximum(labelled.sum(-2), 1)


def gaussian_sides(keypoints: jax.Array, radius: jax.Array, size: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """Rows and columns whose outer product is a keypoint's Gaussian, 1 at its cell.

    Standard deviation (2 radius + 1) / 6, cut off outside the square of +-radius cells.

    Args:
      keypoints: [..., K, 3]; the third value is positive where labelled.
      radius: int32 [...].
      size: (height, width) of the map.

    Returns:
      rows [..., height, 1, K] and columns [..., 1, width, K]; rows are zero for keypoints without label or
      outside the map.
    """
    limit = jnp.array(size[::-1], jnp.float32)
    cell = jnp.trunc(keypoints[..., :2])
    drawn = (keypoints[..., 2] > 0) & jnp.all((cell >= 0) & (cell < limit), axis=-1)
    reach = radius[..., None, None].astype(jnp.float32)
    sigma = (2 * reach + 1) / 6

    def along(axis: int, drawn: jax.Array | bool) -> jax.Array:
        offset = jnp.arange(size[1 - axis], dtype=jnp.float32) - cell[..., axis, None]
        exponent = -jnp.square(offset) / (2 * jnp.square(sigma))
        # The exponential comes last: a CPU then computes these few values once, not again for every cell of the map.
        return jnp.moveaxis(jnp.exp(jnp.where((jnp.abs(offset) <= reach) & drawn, exponent, -jnp.inf)), -2, -1)

    rows, columns = along(1, drawn[..., None]), along(0, True)
    return rows[..., :, None, :], columns[..., None, :, :]


def dense_maps(batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Keypoint maps and the centre map of everybody in an image, the largest value counting, and their mask.

    Returns:
      [B, h, w, K + 1] and [B, h, w, 1] (0 where `ignore`).
    """
    centre = jnp.concatenate([centres(batch["keypoints"]), batch["has_centre"][..., None].astype(jnp.float32)], axis=-1)
    points = jnp.concatenate([batch["keypoints"], centre[:, :, None]], axis=2)
    rows, columns = gaussian_sides(points, batch["radius"], batch["ignore"].shape[1:])

    def add_person(n: int, maps: jax.Array) -> jax.Array:
        return jnp.maximum(maps, rows[:, n] * columns[:, n])

    # Row by row of the padded axis: all people's maps at once would be N times the result.
    blank = jnp.zeros((*batch["ignore"].shape, points.shape[2]))
    maps = jax.lax.fori_loop(0, points.shape[1], add_person, blank)
    return maps, 1.0 - batch["ignore"][..., None].astype(jnp.float32)


def choose_instances(
    priority: jax.Array, valid: jax.Array, group: int, cap: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The people whose keypoints the instance head draws: of each group of images the `cap` of highest
    priority.

    Groups are of a fixed number of images, whatever the devices, so that the choice is too.

    Args:
      priority: [B, N] random, in [0, 1).
      valid: bool [B, N].
      group: images per group, a divisor of B.
      cap: people per group.

    Returns:
      image (within its group) and row, int32 [G, M], and chosen, bool [G, M], False where the group has fewer
      people; M = min(cap, group * N).

    Raises:
      ValueError: B is no multiple of `group`.
    """
    batch, rows = valid.shape
    if batch % group:
        raise ValueError(f"{batch} images do not divide into groups of {group}")
    ranked = jnp.where(valid, priority, -1.0).reshape(batch // group, group * rows)
    best, index = jax.lax.top_k(ranked, min(cap, group * rows))
    return index // rows, index % rows, best >= 0


def make_targets(
    batch: dict[str, jax.Array], image: jax.Array, row: jax.Array, chosen: jax.Array
) -> tuple[Targets, jax.Array]:
    """All targets of a whole-image batch, and the sampling cells [G, M, 2] of the chosen people.

    Args:
      batch: the whole-image batch.
      image, row, chosen: [G, M] from `choose_instances`.
    """
    groups = image.shape[0]

    def of_chosen(values: jax.Array) -> jax.Array:
        """[B, N, ...] -> [G, M, ...]."""
        grouped = values.reshape(groups, -1, *values.shape[1:])
        return jax.vmap(lambda value, i, r: value[i, r])(grouped, image, row)

    keypoints = of_chosen(batch["keypoints"])
    rows, columns = gaussian_sides(keypoints, of_chosen(batch["radius"]), batch["ignore"].shape[1:])
    labelled = (keypoints[..., 2] > 0) & chosen[..., None]
    dense, dense_mask = dense_maps(batch)
    targets = Targets(
        dense=dense,
        dense_mask=dense_mask,
        instance=rows * columns,
        instance_mask=labelled[:, :, None, None, :].astype(jnp.float32),
        boxes=batch["boxes"],
        cells=batch["sample_cell"],
        valid=batch["instance_valid"],
    )
    return targets, of_chosen(batch["sample_cell"])
