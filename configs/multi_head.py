"""The multi-head baseline (ViTPose++): backbone with experts and one heatmap head a dataset, no prototypes.

    python -m posebh_jax.main --config=configs/multi_head.py:base --workdir=workdir/vitpose++ \
        --config.init_from=mae_pretrain_vit_base.pth

The same code, data and arguments as `configs/mdt.py`; 210 epochs, rate x 0.1 after 170 and 200. Its release has 128
crops a device and does not say on how many devices; the batch is PoseBH's.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from . import mdt

ARGUMENTS = mdt.ARGUMENTS


def get_config(arg: str = "base") -> ConfigDict:
    """The baseline of one size, or of the demo."""
    config = mdt.get_config(arg)
    config.method = "multi_head"
    config.stages = [
        mdt.stage("multi-head", 20 if arg == "demo" else 210, ("backbone", "heads"), mdt.MULTI_HEAD_LOSSES)
    ]
    if arg != "demo":
        config.decay_epochs = (170, 200)
    return config
