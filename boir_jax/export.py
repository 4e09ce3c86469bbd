"""People in whole pictures of one size, for files that run without this code."""

from __future__ import annotations

import jax
import numpy as np

from boir_jax.pose_model import PoseModel
from boir_jax.predictor import without_training_heads
from data_pipelines.whole_image.pictures import MULTIPLE
from pose_common.export.program import Outputs, Program, image_pixels


def program(model: PoseModel, size: tuple[int, int] | None = None) -> Program:
    """Pictures of one size -> the P best proposals, network, flip test, proposals and decoding included.

    Outputs are `keypoints` float32 [B, P, K, 3] (x, y in pixels of the input, and confidence), `scores` [B, P] and
    `found` bool [B, P]: which of them are people. Poses found twice are not yet suppressed.

    Args:
      model: a loaded model.
      size: (width, height), multiples of 64; by default a square of the model's short side, rounded up as for pictures.

    Raises:
      ValueError: another size.
    """
    width, height = size or (-(-model.input_size // MULTIPLE) * MULTIPLE,) * 2
    if width % MULTIPLE or height % MULTIPLE or min(width, height) < MULTIPLE:
        raise ValueError(f"size {width},{height}: sides must be multiples of {MULTIPLE}")
    weights = {name: jax.tree.map(np.asarray, without_training_heads(group)) for name, group in model.weights.items()}

    def predict(image: jax.Array) -> Outputs:
        found = model.predictor(weights, image, image_pixels(image.shape[0]))
        return found["keypoints"], found["score"], found["found"]

    about = {
        "model": model.title,
        "dataset": model.dataset,
        "flip_test": model.predictor.proposals.flip,
        "keypoints": {
            "names": list(model.skeleton.keypoints),
            "mirrored": [int(i) for i in model.skeleton.flip_index],
            "oks_sigmas": [float(sigma) for sigma in model.skeleton.oks_sigmas],
        },
        "oks_nms": model.oks_nms,
    }
    return Program(predict, (width, height), ("keypoints", "scores", "found"), about)
