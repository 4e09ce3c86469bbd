"""From crops to keypoints in the image: flip test, decoding, by heatmap heads and by prototypes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from data_pipelines.datasets import PoseDataset
from pose_common import heatmaps
from pose_common.images import normalise_pixels
from pose_common.layers import full_precision
from posebh_jax.comparison import best_similarities
from posebh_jax.keypoint_index import KeypointIndex
from posebh_jax.model import PoseBH
from posebh_jax.prototypes import prototype_heatmaps

HEAD_MAPS, PROTOTYPE_MAPS = "heads", "prototypes"
"""By what a model is read."""


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
    """Compiled prediction with one model. The backbone is compiled once for all skeletons, the small rest for each.

    Attributes:
      model: the network, without `axis_name`.
      datasets: the mixture it was trained on; a crop is judged by one of them, its *head*.
      input_size: (width, height) of a crop.
      flip_test: average with the mirrored crop's mirrored maps.
      dark_kernel, dark_blur: the Gaussian of DARK, by which UDP's maps are decoded; see `heatmaps.decode_dark_udp`.
    """

    model: PoseBH
    datasets: tuple[PoseDataset, ...]
    input_size: tuple[int, int]
    flip_test: bool
    dark_kernel: int
    dark_blur: str = "released"

    def __call__(
        self, weights: Mapping[str, Any], image: jax.Array, inverse_warp: jax.Array, *, head: int, protocol: PoseDataset
    ) -> dict[str, jax.Array]:
        """Keypoints of crops.

        Args:
          weights: `params`, `batch_stats` and `prototypes` (see `TrainState.weights`).
          image: uint8 [B, H, W, 3].
          inverse_warp: float32 [B, 2, 3], crop pixels -> image pixels.
          head: which dataset of the mixture judges.
          protocol: the dataset that the crops come from; its codec decodes.

        Returns:
          {"heads": [B, K, 3]} and, where the model has prototypes, {"prototypes": [B, K, 3]}: x, y in image pixels and
          the maximum of the keypoint's map. A skeleton learned without training has prototypes alone.

        Raises:
          ValueError: the head and the protocol have different keypoint sets.
        """
        if protocol.keypoint_set != self.datasets[head].keypoint_set:
            raise ValueError(
                f"the head of {self.datasets[head].name!r} draws {self.datasets[head].keypoint_set!r} keypoints, "
                f"{protocol.name!r} needs {protocol.keypoint_set!r}"
            )
        with full_precision():
            features = self._features(_variables(weights), image, jnp.int32(head))
            return self._decode(weights, features, inverse_warp, head, protocol.codec == "udp")

    def maps(self, weights: Mapping[str, Any], image: jax.Array, *, head: int, protocol: PoseDataset) -> dict:
        """The merged heatmaps {name: [B, h, w, K]} that `__call__` decodes."""
        with full_precision():
            features = self._features(_variables(weights), image, jnp.int32(head))
            return self._maps(weights, features, head, protocol.codec == "udp")

    @functools.partial(jax.jit, static_argnums=0)
    def _features(self, variables, image, head):
        """Of the crops [B, h, w, C] or, with the flip test, of the crops and their mirror images [2B, h, w, C]."""
        if self.flip_test:
            image = jnp.concatenate([image, image[:, :, ::-1]])
        dataset = jnp.full(image.shape[0], head)
        return self.model.apply(variables, normalise_pixels(image), dataset, method="features")

    @functools.partial(jax.jit, static_argnums=(0, 3, 4))
    def _maps(self, weights, features, head, udp):
        name = self.datasets[head].name
        found = {}
        if "heads" in weights["params"]:
            found[HEAD_MAPS] = self.model.apply(_variables(weights), features, names=(name,), method="heatmaps")
        if weights["prototypes"]:
            start = int(self.keypoint_index.starts[head])
            bank = weights["prototypes"]["bank"][start : start + self.keypoint_index.counts[head]]
            embedding = self.model.apply(_variables(weights), features, method="embed")
            found[PROTOTYPE_MAPS] = prototype_heatmaps(best_similarities(embedding, bank))
        return {kind: self._merge(maps, head, udp) for kind, maps in found.items()}

    @functools.partial(jax.jit, static_argnums=(0, 4, 5))
    def _decode(self, weights, features, inverse_warp, head, udp):
        maps = self._maps(weights, features, head, udp)
        blur = {"kernel": self.dark_kernel, "blur": self.dark_blur}
        return {
            kind: heatmaps.decode(value, inverse_warp, udp=udp, input_size=self.input_size, **blur)
            for kind, value in maps.items()
        }

    def _merge(self, maps: jax.Array, head: int, udp: bool) -> jax.Array:
        if not self.flip_test:
            return maps
        plain, mirrored = jnp.split(maps, 2)
        flip_index = self.datasets[head].keypoints.flip_index
        # The MSRA codec does not map the crop's mirror axis to that of the maps: they lie one cell apart.
        return heatmaps.flip_merge(plain, mirrored, flip_index, shift=not udp)

    @functools.cached_property
    def keypoint_index(self) -> KeypointIndex:
        """Where each dataset's keypoints lie among all."""
        return KeypointIndex(tuple(d.num_keypoints for d in self.datasets))


def _variables(weights: Mapping[str, Any]) -> dict[str, Any]:
    return {"params": weights["params"], "batch_stats": weights["batch_stats"]}
