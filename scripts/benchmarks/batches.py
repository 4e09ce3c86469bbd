"""Made-up batches, for timing and compiling."""

from __future__ import annotations

import numpy as np

from posebh_jax.train import PoseBHMethod


def random_batch(method: PoseBHMethod, size: int) -> dict[str, np.ndarray]:
    """People spread over the crop, datasets in turn."""
    rng = np.random.default_rng(0)
    width, height = method.input_size
    longest = method.layout.longest
    dataset = np.arange(size, dtype=np.int32) % len(method.datasets)
    counts = np.array(method.layout.counts)[dataset]
    return {
        "image": rng.integers(0, 256, (size, height, width, 3), dtype=np.uint8),
        "keypoints": (rng.random((size, longest, 2)) * (width, height)).astype(np.float32),
        "visible": (np.arange(longest) < counts[:, None]).astype(np.float32),
        "dataset": dataset,
        "valid": np.ones(size, bool),
    }
