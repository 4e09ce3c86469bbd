"""Experiments: what the methods do to figures, over several seeds, on two cores; results in docs/results.md."""
