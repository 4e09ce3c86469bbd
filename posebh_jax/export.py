"""Prediction on crops with one skeleton, for files that run without this code."""

from __future__ import annotations

import jax
import numpy as np

from pose_common.export.program import Outputs, Program, image_pixels
from posebh_jax.pose_model import PoseModel
from posebh_jax.predictor import PROTOTYPE_MAPS, Predictor
from posebh_jax.weights.manifest import manifest_of, model_of
from posebh_jax.weights.transfer import single_dataset


def program(pose: PoseModel, dataset: str | None = None, *, flip: bool = False, maps: str | None = None) -> Program:
    """Crops -> `keypoints` float32 [B, K, 3]: x, y in pixels of the crop, and confidence.

    The dataset's expert is folded into the backbone, and the other heads are left out.

    Args:
      pose: a loaded model.
      dataset: whose skeleton, its first by default.
      flip: average with the mirrored crop.
      maps: "heads", or "prototypes" where the model has them; None: the first that it has.

    Raises:
      ValueError: the model has not the dataset or the maps; several datasets.
    """
    name, *others = pose.names(dataset)
    if others:
        raise ValueError(f"dataset {dataset!r}: a file draws one skeleton; name one of {', '.join(pose.datasets)}")
    protocol, loaded = pose.datasets[name], pose.predictors[flip]
    maps = pose.map_of(maps)
    weights = jax.tree.map(np.asarray, pose.weights)
    weights, manifest = single_dataset(weights, manifest_of(loaded.model, loaded.input_size, pose.title), name)
    weights = {**weights, "prototypes": weights["prototypes"] if maps == PROTOTYPE_MAPS else {}}
    predictor = Predictor(
        model_of(manifest), (protocol,), loaded.input_size, flip, loaded.dark_kernel, loaded.dark_blur
    )

    def predict(image: jax.Array) -> Outputs:
        found = predictor(weights, image, image_pixels(image.shape[0]), head=0, protocol=protocol)
        return (found[maps],)

    skeleton = protocol.keypoints
    about = {
        "model": pose.title,
        "dataset": name,
        "maps": maps,
        "flip_test": flip,
        "keypoints": {"names": list(skeleton.keypoints), "mirrored": [int(i) for i in skeleton.flip_index]},
        "crop": {
            "size": list(loaded.input_size),
            "padding": protocol.padding,
            "grow_to_aspect": protocol.aspect_box,
            "codec": protocol.codec,
        },
    }
    return Program(predict, loaded.input_size, ("keypoints",), about)
