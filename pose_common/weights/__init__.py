"""Weights in files: names of other codes (`keys`), PyTorch and safetensors files, this project's own folders (`folder`)."""
