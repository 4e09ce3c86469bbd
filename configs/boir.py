"""BoIR (BMVC 2023), the released configurations.

    python -m boir_jax.main --config=configs/boir.py:coco_w32 --workdir=workdir/boir_coco_w32 --config.data_dir=data

Arguments after the colon: `coco_w32` (default), `coco_w48`, `crowdpose_w32`, `crowdpose_w48`, the same two with
`_finetune`, which go on from a COCO model (`--config.init_from=workdir/boir_coco_w32`), and `demo`, which needs no
data: it renders crowds and shrinks everything, so that the whole way takes minutes on two CPU cores. The published six
with `_v5e` behind fit chips of 16 GB (docs/pods.md). Any field can be set on the command line:
`--config.batch_size=40`.

Any other argument is the name of a prepared dataset that is judged by OKS, such as one of your own: `mine` or
`mine,w48`, with COCO's settings; `mine,small`, the demo's model on a CPU; with `finetune` behind, the shorter schedule
from a model that is trained, `mine,w32,finetune` with `--config.init_from=boir_w32.pth`. `crowdpose,w48` and the like
are the published runs.

The released runs from scratch start from HRNet's ImageNet weights.
"""

from __future__ import annotations

import re

from ml_collections import ConfigDict

from data_pipelines.datasets import SPLITS

from . import common

PUBLISHED = (
    "coco_w32",
    "coco_w48",
    "crowdpose_w32",
    "crowdpose_w48",
    "crowdpose_w32_finetune",
    "crowdpose_w48_finetune",
)
SIZES = ("w32", "w48", "small")
DEVICES = 4
"""Over which the batches per device of the release are multiplied."""


def get_config(arg: str = "coco_w32") -> ConfigDict:
    """The configuration of a published run, of the demo, or of any dataset."""
    if arg == "demo":
        return _demo(_full("w32"))
    published = arg.removesuffix(common.V5E)
    if published not in PUBLISHED:
        return _own(arg)
    dataset, size, *finetune = published.split("_")
    config = _full(size)
    if arg != published and size == "w48":  # W32, folded, fits as it is
        config.remat = True
    if dataset == "crowdpose":
        config = _crowdpose(config)
    return _finetune(config) if finetune else config


def _own(arg: str) -> ConfigDict:
    """Any prepared dataset: `<dataset>[,<size>][,finetune]`."""
    name, *words = arg.split(",")
    sizes = [word for word in words if word in SIZES]
    looks_published = not words and re.search(r"_w\d", name)
    if not name or looks_published or len(sizes) > 1 or set(words) - set(SIZES) - {"finetune"}:
        raise ValueError(
            f"configs/boir.py:{arg}: expected {', '.join(PUBLISHED)}, demo, or <dataset>[,{'|'.join(SIZES)}][,finetune]"
        )
    size = sizes[0] if sizes else "w32"
    published = f"{name}_{size}" + "_finetune" * ("finetune" in words)
    if published in PUBLISHED:  # CrowdPose's splits and rules are not COCO's
        return get_config(published)
    config = _full("w32" if size == "small" else size)
    if "finetune" in words:
        config = _finetune(config)
    if size == "small":
        config = _small(config)
        config.learning_rate, config.epochs = 1e-3, 30
    config.dataset, config.eval_also, config.published_as = name, (), ""
    config.train_split, config.eval_split = SPLITS.get(name, ("train", "val"))
    return config


def _full(size: str) -> ConfigDict:
    """COCO."""
    config = common.settings()
    _set_data(config, size)
    _set_model(config, size)
    _set_schedule(config)
    _set_prediction(config, size)
    return config


def _set_data(config: ConfigDict, size: str) -> None:
    config.dataset = "coco"
    config.train_split, config.eval_split = "train", "val"
    # Further rows of the table: dataset, split; a split without annotations, such as ("coco", "test-dev"), yields a
    # file for submission.
    config.eval_also = (("ochuman", "test"),)
    config.input_size = {"w32": 512, "w48": 640}[size]  # side of a training picture, short side of a tested one
    config.instances = 30  # of an image; smaller people beyond are left out
    config.min_area = 32.0**2  # smallest box, in input pixels squared after augmentation, that is to be found
    config.labelled_images = True  # train on images with a labelled person only, not on all with any annotation
    config.augmentation = ConfigDict(
        {
            "scale": (0.75, 1.5),  # range of the visible square's side, as a factor of the picture's short side
            "rotation": 30.0,  # largest angle in degrees, either way
            "translation": 0.2,  # largest shift along each axis, as a share of the visible square's side
            "mirror": 0.5,  # probability
        }
    )
    config.batch_size = 20 * DEVICES  # over all devices (released: 20 on each of 4)
    config.eval_batch_size = 16  # over all devices, at most


def _set_model(config: ConfigDict, size: str) -> None:
    """The network and its losses."""
    config.method = "boir"
    config.size = size  # "w32", "w48" or "small" (boir_jax/model.py: VARIANTS)
    # Of the large products in training; scores, statistics and losses are float32 whatever this says.
    config.dtype = "bfloat16"
    config.remat = False  # True: HRNet's modules are computed again in the backward pass: less memory, more time
    # Maps of fewer channels are folded up to so many, neighbouring cells side by side, which changes no number: 128
    # fills the lanes of a TPU. 0: none; -1: 128 on TPUs, none elsewhere, where it would be a waste.
    config.fold_channels = -1
    # The embedding head's last bias begins at -4.6 in every channel, as released: all embeddings point the same way
    # then, where their loss has hardly any gradient (docs/results/crowds.md). False: at 0.
    config.embedding_prior = True
    # Images whose batch-norm statistics are taken together; 0: all of the batch. The release's devices do not
    # synchronise theirs (but in crowdpose_w32_finetune): 20.
    config.norm_group = 0

    config.losses = losses()
    # Of every `instance_group` images of the batch at most `instance_cap` people go through the instance head.
    config.instance_group, config.instance_cap = 5, 50


def _set_schedule(config: ConfigDict) -> None:
    config.epochs = 140  # of the whole run
    config.warmup_epochs = 10.0  # linear
    config.learning_rate = 1e-3  # after the warm-up
    config.final_learning_rate = 1e-6  # where half a cosine ends
    config.weight_decay = 0.025
    config.clip_norm = 10.0  # largest norm of all gradients together; 0: none
    config.warmup_start = 1e-12  # rate of the first step
    config.adam = common.adam()  # decays of the two moments; what is added to the root of the second


def _set_prediction(config: ConfigDict, size: str) -> None:
    config.proposals = ConfigDict(
        {
            "maximum": 30,  # people of a picture
            "threshold": 0.01,  # smallest score of a centre
            "flip": True,  # average over the picture and its mirror image
            "windows": ((200, 3), (300, 5)),  # (largest mean side of the map, side of the window of a peak)
            "last_window": 7,  # side of the window where the map is larger than all of these
        }
    )
    # Side, in cells, of the window whose mean is averaged into the maps: of a dataset by name, or else the default.
    config.smoothing = ConfigDict({"default": 3, "ochuman": 11})
    # Similarity (OKS) beyond which the weaker of two poses is dropped: of a dataset by name, or else the default.
    config.oks_nms = ConfigDict({"default": 0.8, "ochuman": 0.7})
    config.published_as = size.upper()  # whose figures stand beside ours


def losses() -> ConfigDict:
    """Weights and choices of the four terms; see `boir_jax.losses.LossConfig`."""
    return ConfigDict(
        {
            "heatmap": 1.0,
            "instance": 4.0,
            "embedding": 0.25,
            "box": 0.25,
            "background": "image",  # what embeddings are pushed from: "image", outside every box; "instance", each box
            "pull": False,  # whether the embeddings of a box's centre and of its person are pulled together
            "beta": 10.0,  # sharpness of the embeddings' similarities
            "images_per_device": 20,  # the release divides every term by it once more
        }
    )


def _crowdpose(config: ConfigDict) -> ConfigDict:
    config.dataset, config.train_split, config.eval_split = "crowdpose", "trainval", "test"
    config.eval_also = ()
    config.min_area, config.labelled_images = 0.0, False
    config.epochs = 310
    return config


def _finetune(config: ConfigDict) -> ConfigDict:
    """From a COCO model; what depends on its skeleton is newly initialised."""
    config.epochs = 100
    config.published_as += " finetuned"
    config.warmup_epochs = 1.0 if config.size == "w32" else 10.0
    config.losses.background, config.losses.pull, config.losses.box = "instance", True, 1.0
    return config


def _demo(config: ConfigDict) -> ConfigDict:
    """Rendered crowds; the small model learns from nothing."""
    config = _small(config)
    config.dataset, config.train_split, config.eval_split = "synthetic_crowd", "train", "val"
    config.eval_also, config.published_as = (), ""
    config.synthetic = ConfigDict({"num_train": 300, "num_val": 40})
    config.data_dir = "workdir/demo_data"
    config.learning_rate = 2e-3
    config.epochs, config.warmup_epochs = 22, 1.0
    config.log_every = 20
    config.checkpoint_every = 200
    config.evaluate_every = 0
    config.pictures = 12
    return config


def _small(config: ConfigDict) -> ConfigDict:
    """The small model, on a CPU."""
    config.min_area, config.labelled_images = 0.0, False
    config.input_size = 128
    config.instances = 10
    config.augmentation.scale = (0.75, 1.25)
    # Small batches and a high rate: from nothing, a few minutes are worth most as many small steps.
    config.batch_size, config.eval_batch_size = 8, 8
    config.instance_group, config.instance_cap = 4, 16
    config.loader_threads = 2
    config.size, config.dtype = "small", "float32"
    config.warmup_epochs = 1.0
    return config
