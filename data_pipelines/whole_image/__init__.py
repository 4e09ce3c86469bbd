"""Whole images for single-stage methods: augmentation and target coordinates (`pictures`), batches (`loader`)."""

from data_pipelines.whole_image.pictures import Augmentation, Rules, Train, WholeImageSource

__all__ = ["Augmentation", "Rules", "Train", "WholeImageSource"]
