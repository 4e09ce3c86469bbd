"""PoseBH, multi-dataset training (CVPR 2025, section 4; schedule and weights as in the released configuration).

    python -m posebh_jax.main --config=configs/mdt.py:base --workdir=workdir/base --config.data_dir=data

Arguments after the colon: `base` (default), `huge`, `large`, `small`, and `demo`, which needs no data: it renders a
synthetic mixture and shrinks everything, so that the whole way takes minutes on two CPU cores. Any field can be set on
the command line: `--config.batch_size=256`, `--config.stages[0].epochs=10`.

The paper's runs start from ViTPose++ weights of the same size: `--config.init_from=vitpose++_base.pth`.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common

DATASETS = ("coco", "aic", "mpii", "ap10k", "apt36k", "coco_wholebody")
MULTI_HEAD_LOSSES = ("heatmap",)
PROTOTYPE_LOSSES = ("prototype", "prototype_heatmap")
ALL_LOSSES = ("heatmap", "prototype", "prototype_heatmap", "cluster", "cross_type")


def get_config(arg: str = "base") -> ConfigDict:
    """The configuration of one size, or of the demo."""
    if arg not in ("base", "huge", "large", "small", "demo"):
        raise ValueError(f"configs/mdt.py:{arg}: expected base, huge, large, small or demo")
    config = _full("tiny" if arg == "demo" else arg)
    if arg == "base":
        # In the released base run a slip keeps the backbone frozen to the end; the huge one thaws it (fidelity.md).
        config.stages[2].train = ("heads", "embedding")
    return _demo(config) if arg == "demo" else config


def _full(size: str) -> ConfigDict:
    config = common.settings()
    config.method = "posebh"  # "multi_head" leaves the prototype parts out: see configs/multi_head.py
    config.fold = ""  # transfer: the dataset whose expert is folded into a plain backbone (configs/transfer.py)

    # Data. Splits and boxes are per dataset; boxes are 'ground_truth' or the path of a COCO detection file.
    config.datasets = DATASETS
    config.train_splits = ConfigDict({"ap10k": "train-split1"})
    config.eval_splits = ConfigDict({"coco": "val", "ap10k": "val-split1", "apt36k": "val"})
    config.default_train_split, config.default_eval_split = "train", "val"
    config.boxes = ConfigDict({"coco": "ground_truth", "coco_wholebody": "ground_truth"})
    # Further rows of the table: dataset, split, head that judges[, boxes]; a split without annotations, such as
    # ("coco", "test-dev", "coco", "detections.json"), yields a file for submission.
    config.eval_also = (("ochuman", "test", "coco"),)
    config.mixture = "concat"  # all instances shuffled as one; or "balanced", or {dataset: weight}
    config.augment = True
    config.batch_size = 512  # over all devices
    config.eval_batch_size = 512
    config.input_size = (192, 256)  # width, height

    # Model.
    config.size = size
    config.head_filters = (256, 256)
    config.embedding_width, config.embedding_dim = 64, 64
    config.embedding_neck = "res"  # a residual block; or "res2", two of them, or "conv", a convolution
    config.embedding_kernel = 3  # or 1; of the convolution after the neck
    config.embedding_activation = "silu"  # or "relu"
    config.prototypes_per_keypoint = 3  # M (section 3.2)
    config.dtype = "bfloat16"  # of backbone and heatmap heads; the rest is float32 whatever this says
    config.remat = False

    # Losses (section 4.2 to 4.4).
    config.losses = ConfigDict()

    # Schedule. Epochs count from 0 over the whole mixture.
    config.stages = [
        stage("prototypes", 50, ("embedding",), PROTOTYPE_LOSSES, prototypes=True),
        stage("self-supervision", 40, ("heads", "embedding"), ALL_LOSSES),
        stage("all", 10, ("backbone", "heads", "embedding"), ALL_LOSSES),
    ]
    config.learning_rate = 1e-3
    config.decay_epochs = (50, 90)
    config.decay_factor = 0.1
    config.warmup_steps = 500
    config.weight_decay = 0.1
    config.layer_decay = True  # smaller rates for the backbone's lower layers
    config.clip_norm = 1.0  # 0: none
    config.num_clusters = 0  # 0: the choice of the paper among 64, 96, 128; it is logged
    return config


def stage(name: str, epochs: int, train: tuple, losses: tuple, prototypes: bool = False) -> ConfigDict:
    """One row of `config.stages`; the fields are those of `pose_common.training.stages.Stage`."""
    return ConfigDict({"name": name, "epochs": epochs, "train": train, "losses": losses, "prototypes": prototypes})


def _demo(config: ConfigDict) -> ConfigDict:
    """People and animals from the renderer; a stage before the paper's three trains backbone and heads from nothing."""
    config.datasets = tuple(f"synthetic_{name}" for name in DATASETS)
    config.train_splits, config.eval_splits = ConfigDict(), ConfigDict()
    config.eval_also = ()
    config.synthetic = ConfigDict({"num_train": 200, "num_val": 40})
    config.data_dir = "workdir/demo_data"
    config.batch_size, config.eval_batch_size = 32, 64
    config.input_size = (96, 128)
    config.loader_threads = 2
    config.head_filters = (32, 32)
    config.embedding_width, config.embedding_dim = 32, 64
    config.dtype = "float32"
    # The paper's weights fit tens of thousands of steps from trained heads; a few hundred steps need larger ones.
    config.losses = ConfigDict({
        "contrast_weight": 1e-2, "cross_entropy_weight": 1.0, "distance_weight": 1.0, "heatmap_weight": 1.0,
        "cluster_weight": 0.1, "cross_type_weight": 0.1,
    })  # fmt: skip
    config.stages = [
        stage("multi-head", 14, ("backbone", "heads"), MULTI_HEAD_LOSSES),
        stage("prototypes", 7, ("embedding",), PROTOTYPE_LOSSES, prototypes=True),
        stage("self-supervision", 1, ("heads", "embedding"), ALL_LOSSES),
        stage("all", 2, ("backbone", "heads", "embedding"), ALL_LOSSES),
    ]
    config.steps_per_epoch = 30
    config.learning_rate, config.warmup_steps = 2e-3, 50
    config.decay_epochs, config.decay_factor = (21, 23), 0.3
    config.log_every = 30
    config.checkpoint_every = 150
    config.evaluate_every = 0
    config.pictures = 12
    return config
