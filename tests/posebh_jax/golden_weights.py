"""Recorded torch weights as variables of our modules."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from pose_common.weights.keys import Rule, flatten, to_flax, unflatten
from tests.golden_files import golden


def golden_state(name: str) -> dict[str, np.ndarray]:
    """The recorded state dict, names without `param:`."""
    return {key.removeprefix("param:"): value for key, value in golden(name).items() if key.startswith("param:")}


def module_variables(shapes, state: dict[str, np.ndarray], rules: list[Rule], strip: str) -> dict:
    """Variables of one module, filled by rules whose targets have `strip` between collection and path.

    Args:
      shapes: the module's variables, as arrays or shapes.
      state: torch state dict.
      rules: table whose targets start with params/<strip>/ and batch_stats/<strip>/.
      strip: path of the module inside the whole model.
    """
    targets = {path.replace("/", f"/{strip}/", 1): value for path, value in flatten(shapes).items()}
    tree = to_flax(dict(state), rules, targets, dropped=(r".*num_batches_tracked", r"(kpt|cluster)_prototype\..*")).tree
    return unflatten({path.replace(f"/{strip}/", "/", 1): jnp.asarray(value) for path, value in tree.items()})


def maps(array: np.ndarray) -> jax.Array:
    """Torch's [B, C, h, w] as [B, h, w, C]."""
    return jnp.moveaxis(jnp.asarray(array), 1, -1)
