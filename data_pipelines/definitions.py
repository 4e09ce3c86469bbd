"""The name under which earlier code imports `find_dataset`, which is in `data_pipelines/datasets.py`."""

from data_pipelines.datasets import definition_path, find_dataset, save_definition

__all__ = ["definition_path", "find_dataset", "save_definition"]
