"""What the configurations of both methods have in common."""

from __future__ import annotations

from ml_collections import ConfigDict

V5E = "_v5e"
"""At the end of an argument: the same run on a TPU slice whose chips have 16 GB (docs/pods.md: which slice)."""


def settings() -> ConfigDict:
    """Fields of every run: where it starts, how it reads, on which devices it runs, what is done when."""
    config = ConfigDict()
    config.mode = "train"  # or "evaluate"
    config.checkpoint = ""  # evaluate: a working directory, a checkpoint of it, or a folder or file of weights
    config.init_from = ""  # train: weights to start from (the same forms)
    config.seed = 0  # of initial values, order of the examples and augmentation

    # Data.
    config.data_dir = "data"  # where prepared datasets lie
    config.definitions = ConfigDict()  # of custom datasets, read from `data_dir` and kept with the run
    config.data_cache = ""  # a folder on this machine's disk, to which what is read is copied first
    config.loader_threads = 16  # that make batches; of each worker process, if there are any
    config.loader_workers = 0  # processes that make batches; 0: the threads of the training process do
    config.synthetic = ConfigDict()  # arguments of `prepare_synthetic`, where the datasets are rendered
    config.steps_per_epoch = 0  # 0: one pass over the examples

    # Devices.
    config.parallel = "sharded"  # or "pmap"
    config.fsdp = 1  # devices that share one copy of the parameters
    config.fsdp_min_size = 2**16  # arrays with fewer elements are on every device
    config.compilation_cache = "~/.cache/posebh_jax/jax"  # folder of compiled programs; "": none are kept

    # Intervals.
    config.log_every = 50  # steps; 0: at the end only
    config.checkpoint_every = 2000  # steps; 0: at the end only
    config.evaluate_every = 10  # epochs; 0: about ten times a run, the first time early
    config.evaluate_stages = True  # also at the start and at the end of each stage
    config.keep_checkpoints = 3  # the newest so many
    config.keep_checkpoints_every = 0  # steps; checkpoints of their multiples are kept for ever; 0: none
    config.profile_steps = ()  # first and last step of an xprof trace in the working directory's `profile`: 100,102
    # Decides which weights are kept in checkpoints/best: a pattern of figures, whose mean counts, such as
    # "coco/heads/AP" or "*/AP"; "": the first figure of each dataset's row; "none": none are.
    config.best_metric = ""
    # Arithmetic of the network in evaluation, whatever it was trained in: float32, as in both releases, whose half
    # precision is for training only; "bfloat16" is faster on accelerators and costs digits.
    config.eval_dtype = "float32"
    config.pictures = 24  # predictions drawn per dataset; the gallery has at most four times as many
    return config


def adam() -> ConfigDict:
    """AdamW's moments, as in both releases (PyTorch's defaults)."""
    return ConfigDict({"b1": 0.9, "b2": 0.999, "eps": 1e-8})
