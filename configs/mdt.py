"""PoseBH, multi-dataset training (CVPR 2025, section 4; schedule and weights as in the released configurations).

    python -m posebh_jax.main --config=configs/mdt.py:base --workdir=workdir/base --config.data_dir=data

Arguments after the colon: `base` (default; released vitb_posebh.py), `huge` (vith_posebh.py), `large`, `small` (as the
released ViTPose++ configurations of these sizes), `huge_v5e` (the same as `huge` on chips of 16 GB: docs/pods.md), and
`demo`, which needs no data: it renders a synthetic mixture and shrinks everything, so that the whole way takes minutes
on two CPU cores. Any field can be set on the command line:
`--config.batch_size=256`, `--config.stages[0].epochs=10`, `--config.datasets=coco,mpii`,
`--config.boxes.coco=dets.json`.

The paper's runs start from ViTPose++ weights of the same size: `--config.init_from=vitpose++_base.pth`.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from . import common

ARGUMENTS = ("base", "huge", "huge_v5e", "large", "small", "demo")
DATASETS = ("coco", "aic", "mpii", "ap10k", "apt36k", "coco_wholebody")
MULTI_HEAD_LOSSES = ("heatmap",)
PROTOTYPE_LOSSES = ("prototype", "prototype_heatmap")
ALL_LOSSES = ("heatmap", "prototype", "prototype_heatmap", "cluster", "cross_type")
GROUND_TRUTH = "ground_truth"

# size: drop probability of the last block, linear from 0 at the first; factor between the rates of neighbouring layers
# (released ViTPose++ and PoseBH configurations; tiny, the demo's, is ours).
REGULARISATION = {
    "tiny": (0.0, 1.0),
    "small": (0.1, 0.8),
    "base": (0.3, 0.75),
    "large": (0.5, 0.8),
    "huge": (0.55, 0.8),
}

# dataset: splits to train on and to evaluate; codec of crops and heatmaps; factor on the box before cropping; whether
# the centre is jittered and half bodies are cropped; standard deviations of scale and rotation (degrees).
# Released vitb_posebh.py; ap10k's split is that of its evaluation script.
ROWS = {
    "coco": ("train", "val", "udp", 1.25, True, True, 0.5, 40.0),
    "aic": ("train", "val", "msra", 1.25, True, True, 0.5, 40.0),
    "mpii": ("train", "val", "udp", 1.25, False, False, 0.5, 40.0),
    "ap10k": ("train-split1", "val-split1", "msra", 1.25, True, True, 0.5, 40.0),
    "apt36k": ("train", "val", "msra", 1.25, True, True, 0.5, 40.0),
    "coco_wholebody": ("train", "val", "msra", 1.25, True, True, 0.5, 40.0),
}
# Rendered, with milder augmentation, because these are runs of minutes.
RENDERED_ROWS = {f"synthetic_{name}": ("train", "val", *row[2:6], 0.2, 15.0) for name, row in ROWS.items()}
# The demo leaves out aic and coco_wholebody: they need a precision of a fraction of a heatmap cell at its resolution.
DEMO_DATASETS = ("synthetic_coco", "synthetic_mpii", "synthetic_ap10k", "synthetic_apt36k")


def get_config(arg: str = "base") -> ConfigDict:
    """The configuration of one size, or of the demo.

    In the released base run a slip keeps the backbone frozen to the end; the huge one thaws it (docs/fidelity.md).
    """
    if arg not in ARGUMENTS:
        raise ValueError(f"configs/mdt.py:{arg}: expected one of {', '.join(ARGUMENTS)}")
    config = _full("tiny" if arg == "demo" else arg.removesuffix(common.V5E))
    if arg.endswith(common.V5E):  # four chips share one copy of parameters and moments
        config.fsdp, config.remat = 4, True
    if arg == "base":
        config.stages[2].train = ("heads", "embedding")
    return _demo(config) if arg == "demo" else config


def _full(size: str) -> ConfigDict:
    config = common.settings()
    config.method = "posebh"  # "multi_head" leaves the prototype parts out: see configs/multi_head.py
    config.fold = ""  # transfer: the dataset whose expert is folded into a plain backbone (configs/transfer.py)
    _set_data(config)
    _set_model(config, size)
    _set_schedule(config)
    _set_evaluation(config)
    return config


def _set_data(config: ConfigDict) -> None:
    config.augmentation = augmentation()
    set_datasets(config, ROWS)
    # The split of a dataset that has none in the tables `train_splits` and `eval_splits`; 3DPW and AP-10K have others.
    config.default_train_split, config.default_eval_split = "train", "val"
    # Further rows of the table: dataset, split, head[, boxes]; a split without annotations, such as
    # ("coco", "test-dev", "coco", "detections.json"), yields a file for submission.
    config.eval_also = (("ochuman", "test", "coco"),)
    config.codec.ochuman, config.padding.ochuman = "msra", 1.25  # as in its released evaluation
    config.mixture = "concat"  # all instances shuffled as one; "balanced"; or "weighted" by config.mixture_weights
    # People of one picture that follow each other and decode it once: more crops a second from pictures of many people,
    # less varied batches. 1: all shuffled, as released.
    config.people_together = 1
    config.augment = True  # False: the crops of evaluation
    config.batch_size = 512  # over all devices (released: 128 on each of 4)
    config.eval_batch_size = 512  # over all devices, at most
    config.input_size = (192, 256)  # width, height
    config.heatmap_sigma = 2.0  # of a target's Gaussian, in cells


def _set_model(config: ConfigDict, size: str) -> None:
    """The network, its losses, and the clusters of its prototypes."""
    # Width and depth go with it (posebh_jax/vit.py: SIZES); drop_path and layer_decay do not: mdt:large has all three.
    config.size = size
    config.drop_path = REGULARISATION[size][0]  # drop probability of the last block; linear from 0 at the first
    config.layer_decay = REGULARISATION[size][1]  # factor between the learning rates of neighbouring layers
    config.head_filters = (256, 256)  # channels of the two transposed convolutions of every head
    config.embedding_width = 64  # channels of the embedding head's neck
    config.embedding_dim = 64  # length of an embedding
    config.embedding_neck = "res"  # a residual block; or "res2", two of them, or "conv", a convolution
    config.embedding_kernel = 3  # or 1; of the convolution after the neck
    config.embedding_activation = "silu"  # or "relu"
    config.prototypes_per_keypoint = 3  # M (section 3.2)
    config.dtype = "bfloat16"  # of backbone and heatmap heads in training; the rest is float32 whatever this says
    config.remat = False  # True: blocks are computed again in the backward pass, which saves memory and costs time
    config.tpu_kernels = True  # on TPUs, in bfloat16: attention and experts by kernels of our own; False: by XLA

    config.losses = losses()
    # The cluster bank (section 3.3).
    config.clusters = ConfigDict(
        {
            # Sizes to choose among. Where none is below the number of keypoints, the same shares of it are tried as
            # these are of the paper's 214.
            "options": (64, 96, 128),
            "rounds": 500,  # of the soft k-means
            "beta": 20.0,  # sharpness of the soft k-means
        }
    )
    config.num_clusters = 0  # 0: the choice among clusters.options; it is logged


def _set_schedule(config: ConfigDict) -> None:
    # Stages follow one another; each says which parameter groups learn, by which loss terms, and whether the
    # prototypes follow the embeddings. Epochs count from 0 over the whole mixture.
    config.stages = [
        stage("prototypes", 50, ("embedding",), PROTOTYPE_LOSSES, prototypes=True),
        stage("self-supervision", 40, ("heads", "embedding"), ALL_LOSSES),
        stage("all", 10, ("backbone", "heads", "embedding"), ALL_LOSSES),
    ]
    config.learning_rate = 1e-3  # after the warm-up
    config.decay_epochs = (50, 90)  # when the rate is multiplied by decay_factor
    config.decay_factor = 0.1
    config.warmup_steps = 500  # linear, from warmup_ratio of the rate
    config.warmup_ratio = 0.001
    config.weight_decay = 0.1  # none on biases, norms and the position embedding
    config.clip_norm = 1.0  # largest norm of all gradients together; 0: none
    config.adam = common.adam()  # decays of the two moments; what is added to the root of the second


def _set_evaluation(config: ConfigDict) -> None:
    """As released."""
    config.flip_test = True  # average the maps of each crop and of its mirror image
    config.dark_kernel = 11  # cells; side of the Gaussian that DARK blurs UDP's maps with before it looks for the peak
    config.dark_blur = "released"  # or "transformers": as the processor of Hugging Face's VitPose blurs
    config.detection_threshold = 0.0  # smallest score of a detector's box
    config.rescoring_threshold = 0.2  # confidences above it enter a pose's score
    config.suppression = "hard"  # of poses that were found twice; or "soft", "none"
    config.oks_nms = 0.9  # similarity (OKS) beyond which one pose suppresses another


def stage(name: str, epochs: int, train: tuple, losses: tuple, prototypes: bool = False) -> ConfigDict:
    """One row of `config.stages`; the fields are those of `pose_common.training.stages.Stage`."""
    return ConfigDict({"name": name, "epochs": epochs, "train": train, "losses": losses, "prototypes": prototypes})


def augmentation() -> ConfigDict:
    """What all datasets have in common (released vitb_posebh.py); see `Augmentation` in data_pipelines/top_down."""
    return ConfigDict(
        {
            "flip": 0.5,  # probability
            "centre_jitter_probability": 0.3,  # of datasets with centre_jitter
            "centre_jitter_extent": 0.2,  # of the box, each way
            "half_body_probability": 0.3,  # of datasets with half_body
            "half_body_min_visible": 8,  # keypoints; more must be visible
            "half_body_upper_below": 0.5,  # a standard normal draw below it takes the upper half: probability 0.69
            "half_body_rest_is_lower": True,  # face and hands count as lower half
            "half_body_padding": 1.5,  # factor on the half's box
            "rotation_probability": 0.6,
            # Decodes JPEGs at 1/2, 1/4 or 1/8 where the crop shrinks the picture at least as much: faster, and pixels
            # differ a little from the release's (docs/benchmarks.md). Evaluation never does.
            "reduced_decoding": False,
        }
    )


def set_datasets(config: ConfigDict, rows: dict[str, tuple]) -> None:
    """Names the mixture and fills its tables, one entry a dataset, from rows as in `ROWS`."""
    config.datasets = tuple(rows)  # of the mixture

    def table(values) -> ConfigDict:
        return ConfigDict(dict(zip(rows, values, strict=True)))

    columns = map(table, zip(*rows.values(), strict=True))
    config.train_splits = next(columns)
    config.eval_splits = next(columns)
    config.codec = next(columns)  # of crops and heatmaps: "udp" or "msra"
    config.padding = next(columns)  # factor on the box before cropping
    config.augmentation.centre_jitter = next(columns)  # whether boxes are moved
    config.augmentation.half_body = next(columns)  # whether half bodies are cropped
    config.augmentation.scale_factor = next(columns)  # standard deviation
    config.augmentation.rotation_factor = next(columns)  # standard deviation in degrees
    # "ground_truth", or the path of a COCO detection file, for evaluation; training crops are the annotated ones.
    config.boxes = table([GROUND_TRUTH] * len(rows))
    config.mixture_weights = table([1.0] * len(rows))  # for a mixture that is "weighted"


def losses() -> ConfigDict:
    """Sections 3.2 to 3.4, with the numbers of the released vitb_posebh.py; see `PrototypeConfig`."""
    return ConfigDict(
        {
            "momentum": 0.999,  # share of a prototype that an update keeps
            "sinkhorn_epsilon": 0.05,  # temperature of the assignment
            "sinkhorn_rounds": 3,
            "label_threshold": 0.0,  # a pixel is labelled where its largest target exceeds this
            "weigh_by_correctness": False,  # pixels enter an update with 1 when correct, else 0; not by confidence
            "contrast_weight": 1.25e-5,  # of cross entropy and distance together
            "cross_entropy_weight": 0.01,  # within contrast_weight
            "distance_weight": 0.001,  # within contrast_weight
            "heatmap_weight": 3.33e-6,  # of the prototype heatmaps' error; within the cluster and cross-type terms, too
            "cluster_weight": 1e-2,
            "cross_type_weight": 1e-3,
            "cross_type_threshold": 0.25,  # both peaks must exceed it
            "cross_type_distance": 2.1,  # cells that the two peaks may lie apart
            "cross_type_kernel": 11,  # cells; side of the Gaussian that DARK blurs both maps with
            "cross_type_sigma": 2.0,  # of the pseudo label's Gaussian, in cells
        }
    )


def _demo(config: ConfigDict) -> ConfigDict:
    """People and animals from the renderer; a stage before the paper's three trains backbone and heads from nothing."""
    set_datasets(config, {name: RENDERED_ROWS[name] for name in DEMO_DATASETS})
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
    config.losses.update(
        {
            "contrast_weight": 1e-2,
            "cross_entropy_weight": 1.0,
            "distance_weight": 1.0,
            "heatmap_weight": 1.0,
            "cluster_weight": 0.1,
            "cross_type_weight": 0.1,
        }
    )
    config.stages = [
        stage("multi-head", 15, ("backbone", "heads"), MULTI_HEAD_LOSSES),
        stage("prototypes", 10, ("embedding",), PROTOTYPE_LOSSES, prototypes=True),
        stage("self-supervision", 1, ("heads", "embedding"), ALL_LOSSES),
        stage("all", 2, ("backbone", "heads", "embedding"), ALL_LOSSES),
    ]
    config.steps_per_epoch = 30
    config.learning_rate, config.warmup_steps = 2e-3, 50
    config.decay_epochs, config.decay_factor = (25, 27), 0.3
    config.log_every = 30
    config.checkpoint_every = 150
    config.evaluate_every = 0
    config.pictures = 12
    return config
