"""From whole images to people in image pixels."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from boir_jax import proposals
from boir_jax.model import BoIR
from boir_jax.proposals import ProposalConfig
from data_pipelines.skeletons import KeypointSet
from pose_common import heatmaps
from pose_common.images import normalise_pixels
from pose_common.layers import full_precision

TRAINING_HEADS = ("keypoint_head", "embedding_head", "box_head")


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
    """Compiled prediction with one model: once for every size of pictures, and then kept.

    Attributes:
      model: the network; its training heads are left out.
      skeleton: the keypoints that it draws.
      proposals: how people are found.
    """

    model: BoIR
    skeleton: KeypointSet
    proposals: ProposalConfig

    def __call__(self, weights: Mapping[str, Any], image: jax.Array, inverse_warp: jax.Array) -> dict[str, jax.Array]:
        """People in pictures of one size.

        Args:
          weights: `params` and `batch_stats`, those of training heads included or not.
          image: uint8 [B, H, W, 3]; see `data_pipelines.whole_image.pictures.inference_size`.
          inverse_warp: float32 [B, 2, 3], input pixels -> image pixels.

        Returns:
          `keypoints` [B, P, K, 3] in image pixels, `score` [B, P] and `found` [B, P]; see `proposals.Poses`.
        """
        needed = {name: without_training_heads(weights[name]) for name in ("params", "batch_stats")}
        with full_precision():
            return self._people(needed, image, inverse_warp)

    @functools.partial(jax.jit, static_argnums=0)
    def _people(self, variables, image, inverse_warp):
        bound = self.model.clone(training_heads=False).bind(variables)
        poses = proposals.predict(bound, normalise_pixels(image), jnp.asarray(self.skeleton.flip_index), self.proposals)
        batch, people, keypoints = poses.keypoints.shape[:3]
        pixels = poses.keypoints[..., :2].reshape(batch, people * keypoints, 2)
        pixels = heatmaps.to_image(pixels, inverse_warp).reshape(batch, people, keypoints, 2)
        keypoints = jnp.concatenate([pixels, poses.keypoints[..., 2:]], axis=-1)
        return {"keypoints": keypoints, "score": poses.scores, "found": poses.found}


def without_training_heads(groups: Mapping[str, Any]) -> dict[str, Any]:
    """{group: variables} of what inference needs."""
    return {name: group for name, group in groups.items() if name not in TRAINING_HEADS}
