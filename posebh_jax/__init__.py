"""PoseBH (CVPR 2025): multi-dataset pose estimation with keypoint prototypes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posebh_jax.pose_model import PoseModel


def load(source: Any = None, **options: Any) -> PoseModel:
    """Loads a model with its weights: `load("workdir/base")("photo.jpg")`; see `posebh_jax.pose_model.load`."""
    from posebh_jax.pose_model import load  # what prediction needs is imported where it is used

    return load(source, **options)
