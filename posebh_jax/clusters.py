"""Cluster prototypes: a smaller bank shared by all skeletons, made once from the trained prototypes.

Keypoints of different skeletons that mean the same end up with similar prototypes. Soft k-means groups them;
each cluster's prototypes then supervise the embedding on targets moved from keypoints to clusters (PoseBH,
CVPR 2025, section 3.3). The clustering runs once, on the host in float64, so that every process and platform
gets the same bank; the loss (`losses/cluster.py`) runs inside the step with the bank as a constant.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from posebh_jax.keypoint_index import KeypointIndex

RELEASED_KEYPOINTS = 214
"""Of the paper's six skeletons."""
# Below this share of the prototypes' energy a reconstruction error is rounding of float32 prototypes.
_ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class ClusterConfig:
    """How the bank is made: `config.clusters` (the paper's numbers are in configs/mdt.py).

    Attributes:
      options: numbers of clusters to choose among.
      rounds, beta: of the soft k-means, see `soft_kmeans`.
    """

    options: tuple[int, ...]
    rounds: int
    beta: float


class ClusterBank(NamedTuple):
    """Frozen cluster prototypes [C, M, D]; the global keypoint id [C] that each takes its targets from."""

    prototypes: jax.Array
    keypoint: jax.Array

    @property
    def keypoint_index(self) -> KeypointIndex:
        """Of the clusters, which are compared as the keypoints of one dataset are."""
        return KeypointIndex((self.keypoint.shape[0],))


class ClusterChoice(NamedTuple):
    """The bank, and what decided its size.

    Attributes:
      bank: the cluster prototypes.
      errors: option -> squared residual of reconstructing all prototypes from its centres, unweighted.
      weighted: option -> error x (C/T)^2, the criterion; 0 where the error is rounding.
    """

    bank: ClusterBank
    errors: dict[int, float]
    weighted: dict[int, float]

    def summary(self) -> str:
        """One line for the log."""
        options = [f"{c}: error {e:.3g}, weighted {self.weighted[c]:.3g}" for c, e in self.errors.items()]
        return f"chose {len(self.bank.keypoint)} clusters ({', '.join(options)})"


def soft_kmeans(points: np.ndarray, centres: np.ndarray, *, rounds: int, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """Soft k-means under the cosine distance (1 - cos) / 2.

    Args:
      points: [N, D].
      centres: [C, D] to start from.
      rounds: updates of the centres, each the mean of all points weighted by softmax(-beta x distance) over
        centres.

    Returns:
      centres [C, D], not normalised, and the distances [N, C] to them.
    """
    unit = _unit(points)

    def distances(centres):
        return (1 - unit @ _unit(centres).T) / 2

    for _ in range(rounds):
        share = assignments(distances(centres), beta)
        centres = share.T @ points / share.sum(axis=0)[:, None]
    return centres, distances(centres)


def assignments(distances: np.ndarray, beta: float) -> np.ndarray:
    """Soft assignment [N, C] of points to centres: softmax(-beta x distance)."""
    weight = np.exp(-beta * (distances - distances.min(axis=1, keepdims=True)))
    return weight / weight.sum(axis=1, keepdims=True)


def reconstruction_error(points: np.ndarray, centres: np.ndarray) -> float:
    """Squared residual of the best linear combinations of centres [C, D] for points [N, D].

    Rank-revealing: coinciding centres count once.
    """
    weights = np.linalg.lstsq(centres.T, points.T, rcond=None)[0]
    return float(np.square(points.T - centres.T @ weights).sum())


def nearest_prototypes(distances: np.ndarray, per_cluster: int) -> np.ndarray:
    """[C, per_cluster]: the prototypes nearest to each centre, nearest first, from distances [N, C]."""
    return np.argsort(distances, axis=0, kind="stable")[:per_cluster].T


def numbers_to_try(keypoints: int, options: Sequence[int], fixed: int | None) -> list[int]:
    """The numbers of clusters among which the best is kept: `fixed`, or the options below the keypoints T of a mixture.

    Where none is below, as in a mixture of two skeletons, the same shares of T as these are of the paper's 214.

    Raises:
      ValueError: none is below T, or an option is no whole number from 1.
    """
    if not options or not all(type(count) is int and count >= 1 for count in options):
        raise ValueError("expected whole numbers of clusters, from 1")
    scaled = sorted({max(1, round(count * keypoints / RELEASED_KEYPOINTS)) for count in options})
    tried = [fixed] if fixed else options if min(options) < keypoints else scaled
    numbers = [count for count in tried if count < keypoints]
    if not numbers:
        raise ValueError(f"no number of clusters below the {keypoints} keypoints of the mixture was given")
    return numbers


def choose_clusters(
    prototypes: np.ndarray,
    options: Sequence[int],
    *,
    rounds: int,
    beta: float,
    fixed: int | None = None,
) -> ClusterChoice:
    """Clusters the prototypes and chooses how many clusters to keep.

    Kept is the first option with the least error x (C/T)^2. With C >= D the centres usually span the space
    and every error is rounding, which made the reference's choice arbitrary: such errors count as 0 here.

    Args:
      prototypes: [T, M, D].
      options: numbers of clusters to try; see `numbers_to_try`.
      fixed: take this number instead.
      rounds, beta: see `soft_kmeans`, which starts at the first prototype of the first C keypoints.

    Raises:
      ValueError: no number can be tried.
    """
    prototypes = np.asarray(prototypes, np.float64)
    keypoints, per_keypoint, dim = prototypes.shape
    points = _unit(prototypes.reshape(-1, dim))
    errors, weighted, nearest = {}, {}, {}
    for count in numbers_to_try(keypoints, options, fixed):
        start = points[: count * per_keypoint : per_keypoint]
        centres, distances = soft_kmeans(points, start, rounds=rounds, beta=beta)
        errors[count] = reconstruction_error(points, centres)
        rounding = errors[count] <= _ROUNDING * len(points)
        weighted[count] = 0.0 if rounding else errors[count] * (count / keypoints) ** 2
        nearest[count] = nearest_prototypes(distances, per_keypoint)
    chosen = nearest[min(weighted, key=lambda count: weighted[count])]
    bank = ClusterBank(jnp.asarray(points[chosen], jnp.float32), jnp.asarray(chosen[:, 0] // per_keypoint, jnp.int32))
    return ClusterChoice(bank, errors, weighted)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-8)
