"""BoIR (BMVC 2023): box-supervised instance representation for multi-person pose estimation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from boir_jax.pose_model import PoseModel


def load(source: Any = None, **options: Any) -> PoseModel:
    """Loads a model with its weights: `load("workdir/boir")("street.jpg")`; see `boir_jax.pose_model.load`."""
    from boir_jax.pose_model import load  # what prediction needs is imported where it is used

    return load(source, **options)
