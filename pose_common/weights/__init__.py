"""Weights in files: names of other codes (`keys`), PyTorch and safetensors files, own folders (`folder`)."""
