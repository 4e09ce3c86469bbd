"""Transfer of a trained PoseBH to one dataset with another skeleton, as released for InterHand2.6M and 3DPW.

    python -m posebh_jax.main --config=configs/transfer.py:interhand2d --workdir=workdir/interhand2d \
        --config.init_from=posebh_base.pth

Arguments after the colon: `interhand2d`, `3dpw`, `demo` (a rendered skeleton that the demo's mixture has not
seen; it starts from the demo, `--config.init_from=workdir/demo`), or the name of a dataset of one's own.

A plain transformer is made from the weights, the expert of `config.fold` folded in; that dataset's head gets
a new last convolution, the prototypes are new, the embedding head stays as it is. Everything else is as in
`configs/mdt.py`.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import mdt

LOSSES = ("heatmap", *mdt.PROTOTYPE_LOSSES)
DEVICES = 4
"""Over which the batches per device of the release are multiplied; its example of a transfer runs on four."""


def get_config(arg: str = "interhand2d") -> ConfigDict:
    """The transfer to one dataset."""
    config = mdt.get_config("demo" if arg == "demo" else "base")
    config.fold = "synthetic_coco" if arg == "demo" else "coco"
    config.datasets = ({"3dpw": "pw3d", "demo": "synthetic_crowd"}.get(arg, arg),)
    config.eval_also = ()
    config.losses = ConfigDict(
        {"label_threshold": 0.2, "weigh_by_correctness": True, "heatmap_weight": 1.25e-5}
    )
    config.warmup_steps = 500
    config.weight_decay, config.clip_norm, config.layer_decay = 0.0, 0.0, False  # Adam
    if arg == "3dpw":
        _pw3d(config)
    else:
        _interhand2d(config)
    return _demo(config) if arg == "demo" else config


def _interhand2d(config: ConfigDict) -> None:
    """Also the schedule for datasets of one's own, which have no test split that is kept back."""
    if config.datasets == ("interhand2d",):
        config.eval_splits = ConfigDict({"interhand2d": "test"})
    config.batch_size = config.eval_batch_size = 96 * DEVICES
    config.learning_rate, config.decay_epochs = 5e-4, (35, 55)
    config.stages = [
        mdt.stage("head", 30, ("heads",), LOSSES, prototypes=True),
        mdt.stage("all", 30, ("backbone", "heads"), LOSSES),
    ]


def _pw3d(config: ConfigDict) -> None:
    config.eval_splits = ConfigDict({"pw3d": "test"})
    config.batch_size = config.eval_batch_size = 64 * DEVICES
    config.learning_rate, config.decay_epochs = 1e-4, (10, 15)
    config.stages = [
        mdt.stage("head", 15, ("heads",), LOSSES, prototypes=True),
        mdt.stage("all", 1, ("backbone", "heads"), LOSSES),
        mdt.stage("head again", 14, ("heads",), LOSSES),
    ]


def _demo(config: ConfigDict) -> ConfigDict:
    config.batch_size = config.eval_batch_size = 64
    config.learning_rate, config.decay_epochs, config.warmup_steps = 1e-3, (10,), 10
    config.stages[0].epochs, config.stages[1].epochs = 8, 4
    return config
