"""Transfer of a trained PoseBH to one dataset with another skeleton, as released for InterHand2.6M and 3DPW.

    python -m posebh_jax.main --config=configs/transfer.py:interhand2d --workdir=workdir/interhand2d \
        --config.init_from=posebh_base.pth

Arguments after the colon: `interhand2d`, `3dpw` or `pw3d`, `demo` (a rendered skeleton that the demo's mixture has
not seen; it starts from the demo, `--config.init_from=workdir/demo`), the name of a custom dataset, or that name and
`tiny`: `mine,tiny` is the demo's small model, for a few hundred people or animals in minutes on two CPU cores. It
starts from the demo or from the model that the package carries, `--config.init_from=posebh_jax/embedded.safetensors`.
With `,multi_head` behind the dataset it is the baseline's transfer, of ViTPose++ weights: `interhand2d,multi_head`.

A plain transformer is made from the weights, the expert of `config.fold` folded in; that dataset's head gets
a new last convolution, the prototypes are new, the embedding head stays as it is. Everything else is as in
`configs/mdt.py`. The baseline has the heatmap head alone, and its backbone learns from the start.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from . import mdt

LOSSES = ("heatmap", *mdt.PROTOTYPE_LOSSES)
DEVICES = 4
"""Over which the batches per device of the release are multiplied; its example of a transfer runs on four."""

# As `mdt.ROWS`, from the released transfer configurations. Hands fill their boxes, so there are no halves to crop.
ROWS = {
    "interhand2d": ("train", "test", "msra", 1.5, True, False, 0.3, 90.0),
    "pw3d": ("train", "test", "msra", 1.25, True, True, 0.5, 40.0),
    "synthetic_crowd": ("train", "val", "msra", 1.25, True, True, 0.2, 15.0),
}


def get_config(arg: str = "interhand2d") -> ConfigDict:
    """The transfer to one dataset."""
    name, comma, kind = arg.partition(",")
    tiny, multi_head = kind == "tiny", kind == "multi_head"
    if not name or comma and not (multi_head or tiny and name not in ROWS):
        raise ValueError(
            f"configs/transfer.py:{arg}: expected a dataset, with multi_head, or one of your own with tiny: "
            "interhand2d, interhand2d,multi_head or mine,tiny"
        )
    config = mdt.get_config("demo" if name == "demo" or tiny else "base")
    config.fold = "synthetic_coco" if name == "demo" else "synthetic_ap10k" if tiny else "coco"
    dataset = {"3dpw": "pw3d", "demo": "synthetic_crowd"}.get(name, name)
    if dataset in ROWS:
        mdt.set_datasets(config, {dataset: ROWS[dataset]})
    else:
        config.datasets = (dataset,)  # what the tables do not say is taken from its definition
    config.eval_also = ()
    if dataset not in ROWS:
        config.evaluate_every = 0  # epochs may be few or short: about ten times a run
    elif name != "demo":
        config.evaluate_every = 5  # as released
    config.losses = mdt.losses()
    config.losses.label_threshold, config.losses.weigh_by_correctness = 0.2, True
    config.losses.heatmap_weight = 1.25e-5
    config.warmup_steps = 500
    config.weight_decay, config.clip_norm, config.layer_decay = 0.0, 0.0, 1.0  # Adam
    if dataset == "pw3d":
        _pw3d(config)
    else:
        _interhand2d(config, 128 if multi_head else 96)
    if dataset == "interhand2d":
        config.best_metric = "interhand2d/heads/AUC"  # by which the release keeps its best
    config = _demo(config) if name == "demo" else _tiny(config) if tiny else config
    return _multi_head(config) if multi_head else config


def _interhand2d(config: ConfigDict, batch: int) -> None:
    """Also the schedule for custom datasets; `batch` is a device's."""
    config.batch_size = config.eval_batch_size = batch * DEVICES
    config.learning_rate, config.decay_epochs = 5e-4, (35, 55)
    config.stages = [
        mdt.stage("head", 30, ("heads",), LOSSES, prototypes=True),
        mdt.stage("all", 30, ("backbone", "heads"), LOSSES),
    ]


def _pw3d(config: ConfigDict) -> None:
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


def _tiny(config: ConfigDict) -> ConfigDict:
    """Minutes on two CPU cores. So few steps are nothing to prototypes, so there are none: the heatmap head learns."""
    config.method = "multi_head"
    config.synthetic, config.data_dir = ConfigDict(), "data"
    config.batch_size, config.eval_batch_size, config.steps_per_epoch = 32, 32, 10
    config.learning_rate, config.decay_epochs, config.decay_factor, config.warmup_steps = 1e-3, (45, 55), 0.3, 10
    config.stages = [
        mdt.stage("head", 5, ("heads",), mdt.MULTI_HEAD_LOSSES),
        mdt.stage("all", 55, ("backbone", "heads"), mdt.MULTI_HEAD_LOSSES),
    ]
    return config


def _multi_head(config: ConfigDict) -> ConfigDict:
    """As the released ViTPose_base_interhand2d_all_256x192.py and ViTPose_base_pw3d_2d_256x192.py: as many epochs."""
    config.method = "multi_head"
    epochs = sum(stage.epochs for stage in config.stages)
    config.stages = [mdt.stage("all", epochs, ("backbone", "heads"), mdt.MULTI_HEAD_LOSSES)]
    return config
