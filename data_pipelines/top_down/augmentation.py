"""Random transforms of person crops: centre jitter, mirror, half body, scale and rotation.

They are frozen dataclasses with `draw` (numpy Generator -> random parameters) and `apply` (sample, parameters ->
sample; see `crops` for what a sample is), so that recorded parameters can be replayed. Parameters are drawn whether or
not they are needed, so that one transform never shifts the random numbers of the next.

The recipe is the released one, except that the jitter is drawn for every element and epoch, not once for the whole
training.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from data_pipelines import geometry
from data_pipelines.datasets import PoseDataset
from data_pipelines.skeletons import KeypointSet

Sample = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What all datasets of a mixture have in common (`config.augmentation`); the rest is in their `PoseDataset`.

    Attributes:
      flip: probability of mirroring.
      centre_jitter_probability, centre_jitter_extent: see `CentreJitter`.
      half_body_probability, half_body_min_visible, half_body_upper_below, half_body_rest_is_lower, half_body_padding:
        see `HalfBody`.
      rotation_probability: see `ScaleRotation`.
      reduced_decoding: whether JPEGs are decoded at 1/2, 1/4 or 1/8 where the crop shrinks the picture as much or
        more; see `crops.Crop.reduction`.
    """

    flip: float
    centre_jitter_probability: float
    centre_jitter_extent: float
    half_body_probability: float
    half_body_min_visible: int
    half_body_upper_below: float
    half_body_rest_is_lower: bool
    half_body_padding: float
    rotation_probability: float
    reduced_decoding: bool


def steps_of(settings: Augmentation | None, dataset: PoseDataset, input_size: tuple[int, int]) -> tuple:
    """The random transforms of a dataset's training, in their order; none without settings."""
    if settings is None:
        return ()
    steps: list = []
    if dataset.centre_jitter:
        steps.append(CentreJitter(settings.centre_jitter_probability, settings.centre_jitter_extent))
    steps.append(Flip(dataset.keypoints, settings.flip))
    if dataset.half_body:
        steps.append(
            HalfBody(
                dataset.keypoints,
                aspect=input_size[0] / input_size[1],
                probability=settings.half_body_probability,
                min_visible=settings.half_body_min_visible,
                upper_below=settings.half_body_upper_below,
                rest_is_lower=settings.half_body_rest_is_lower,
                padding=settings.half_body_padding,
            )
        )
    steps.append(ScaleRotation(dataset.scale_factor, dataset.rotation_factor, settings.rotation_probability))
    return tuple(steps)


@dataclasses.dataclass(frozen=True)
class CentreJitter:
    """Moves the centre by up to `extent` of the box in each direction."""

    probability: float
    extent: float

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Three uniforms: whether, x, y."""
        return rng.random(3)

    def apply(self, sample: Sample, draws) -> Sample:
        if draws[0] >= self.probability:
            return sample
        shift = 2 * self.extent * (np.asarray(draws[1:]) - 0.5) * sample["box"][2:]
        return sample | {"centre": sample["centre"] + shift}


@dataclasses.dataclass(frozen=True)
class Flip:
    """Mirrors the image; hidden keypoints end at (0, 0)."""

    keypoint_set: KeypointSet
    probability: float

    def draw(self, rng: np.random.Generator) -> float:
        """One uniform."""
        return rng.random()

    def apply(self, sample: Sample, uniform: float) -> Sample:
        if uniform > self.probability:
            return sample
        last = sample["size"][0] - 1
        order = self.keypoint_set.flip_index
        visible = sample["visible"][order]
        keypoints = sample["keypoints"][order]
        keypoints[:, 0] = last - keypoints[:, 0]
        keypoints[visible == 0] = 0
        centre_x, centre_y = sample["centre"]
        return sample | {
            "keypoints": keypoints,
            "visible": visible,
            "mirrored": not sample["mirrored"],
            "centre": np.array([last - centre_x, centre_y]),
        }


@dataclasses.dataclass(frozen=True)
class HalfBody:
    """Crops the upper or the lower body of a person with more than `min_visible` visible keypoints.

    As released, which is the recipe that the published models were trained with: a standard normal draw below
    `upper_below` chooses the upper body, and with `rest_is_lower` whatever is not upper body counts as lower, on
    whole-body skeletons also face and hands; without, the skeleton's own lower half.
    """

    keypoint_set: KeypointSet
    aspect: float
    probability: float
    min_visible: int
    upper_below: float
    rest_is_lower: bool
    padding: float

    def draw(self, rng: np.random.Generator) -> tuple[float, float]:
        """A uniform (whether) and a standard normal (which half)."""
        return rng.random(), rng.standard_normal()

    def apply(self, sample: Sample, draws: tuple[float, float]) -> Sample:
        uniform, normal = draws
        if uniform >= self.probability or np.count_nonzero(sample["visible"]) <= self.min_visible:
            return sample
        crop = self.half(sample["keypoints"], sample["visible"], normal)
        return sample if crop is None else sample | {"centre": crop[0], "scale": crop[1]}

    def half(
        self,
        keypoints: np.ndarray,
        visible: np.ndarray,
        normal: float,
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """(centre, scale) of a half body, or None where too few keypoints span it."""
        upper, lower = (np.flatnonzero(half & (visible > 0)) for half in self._halves)
        chosen = upper if (normal < self.upper_below and len(upper) > 2) or len(lower) <= 2 else lower
        if len(chosen) < 2:
            return None
        points = keypoints[chosen].astype(np.float64)
        size = np.ptp(points, axis=0)
        if not size.any():
            return None
        scale = geometry.grow_to_aspect(size, self.aspect) * (self.padding / geometry.SCALE_UNIT)
        return points.mean(axis=0), scale

    @functools.cached_property
    def _halves(self) -> tuple[np.ndarray, np.ndarray]:
        upper = np.zeros(self.keypoint_set.num_keypoints, bool)
        upper[list(self.keypoint_set.upper_body)] = True
        lower = np.zeros_like(upper)
        lower[list(self.keypoint_set.lower_body)] = True
        return upper, ~upper if self.rest_is_lower else lower


@dataclasses.dataclass(frozen=True)
class ScaleRotation:
    """Scales the crop by 1 + scale_factor n, rotates it by rotation_factor m degrees; n, m standard normal.

    The scale is clipped to 1 -+ scale_factor, the angle to twice the rotation factor.
    """

    scale_factor: float
    rotation_factor: float
    rotation_probability: float

    def draw(self, rng: np.random.Generator) -> tuple[float, float, float]:
        """Two standard normals (scale, rotation) and a uniform (whether to rotate)."""
        return rng.standard_normal(), rng.standard_normal(), rng.random()

    def apply(self, sample: Sample, draws: tuple[float, float, float]) -> Sample:
        scale_normal, rotation_normal, uniform = draws
        factor = min(max(1 + self.scale_factor * scale_normal, 1 - self.scale_factor), 1 + self.scale_factor)
        limit = 2 * self.rotation_factor
        rotates = uniform <= self.rotation_probability
        rotation = min(max(self.rotation_factor * rotation_normal, -limit), limit) if rotates else 0.0
        return sample | {"scale": sample["scale"] * factor, "rotation": rotation}
