"""The PoseBH model that the package carries: the demo's network, all six rendered skeletons, trained longer.

    make embedded

`scripts/embed_models.py` puts what this run and `make demo-boir` have learned into the package.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from . import mdt


def get_config() -> ConfigDict:
    """The configuration of the run."""
    config = mdt.get_config("demo")
    mdt.set_datasets(config, mdt.RENDERED_ROWS)
    config.synthetic = ConfigDict({"num_train": 400, "num_val": 80})
    config.data_dir = "workdir/embedded_data"
    config.stages[0].epochs, config.stages[3].epochs = 80, 9
    config.decay_epochs = (72, 95)
    config.checkpoint_every = 300
    return config
