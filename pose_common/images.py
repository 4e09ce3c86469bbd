"""Pictures on the device."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

# Means and deviations of ImageNet's RGB values in [0, 1]: what every published backbone was trained with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalise_pixels(image: jax.Array) -> jax.Array:
    """uint8 [..., 3] RGB -> float32 (value / 255 - mean) / deviation."""
    mean, std = np.asarray(IMAGENET_MEAN, np.float32), np.asarray(IMAGENET_STD, np.float32)
    return (image.astype(jnp.float32) / 255.0 - mean) / std
