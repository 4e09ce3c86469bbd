"""Person crops for top-down methods: which people (`instances`), `augmentation`, warp (`crops`), batches (`loader`)."""

from data_pipelines.top_down.crops import Crop, TopDownSource, Train, decode

__all__ = ["Crop", "TopDownSource", "Train", "decode"]
