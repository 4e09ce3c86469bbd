"""The name under which earlier code imports the top-down loaders, which are in `data_pipelines/top_down/loader.py`."""

from data_pipelines.reading import Reading
from data_pipelines.top_down.loader import Entry, EvalLoader, TrainIterator, eval_loader, train_loader

__all__ = ["Entry", "EvalLoader", "Reading", "TrainIterator", "eval_loader", "train_loader"]
