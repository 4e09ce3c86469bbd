"""The two models that the package carries, which know rendered figures: the demos' networks, trained longer.

    make embedded

Arguments after the colon: `posebh`, all six rendered skeletons (`python -m posebh_jax.main`), and `boir`, crowds
(`python -m boir_jax.main`). `scripts/embed_models.py` puts what they have learned into the package.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from . import boir, mdt

ARGUMENTS = ("posebh", "boir")


def get_config(arg: str = "posebh") -> ConfigDict:
    """The run of one of the two."""
    if arg not in ARGUMENTS:
        raise ValueError(f"configs/embedded.py:{arg}: expected one of {', '.join(ARGUMENTS)}")
    config = _posebh() if arg == "posebh" else _boir()
    config.data_dir = "workdir/embedded_data"
    return config


def _posebh() -> ConfigDict:
    config = mdt.get_config("demo")
    mdt.set_datasets(config, mdt.RENDERED_ROWS)
    config.synthetic = ConfigDict({"num_train": 400, "num_val": 80})
    config.stages[0].epochs, config.stages[3].epochs = 80, 9
    config.decay_epochs = (72, 95)
    config.checkpoint_every = 300
    return config


def _boir() -> ConfigDict:
    config = boir.get_config("demo")
    config.synthetic = ConfigDict({"num_train": 800, "num_val": 80})
    config.epochs = 14
    return config
