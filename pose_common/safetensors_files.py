"""The name under which earlier code imports the safetensors reader and writer of `pose_common/weights`."""

from pose_common.weights.safetensors_files import read_safetensors, write_safetensors

__all__ = ["read_safetensors", "write_safetensors"]
