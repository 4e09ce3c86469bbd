"""Metrics on the host: OKS average precision, PCKh, PCK, AUC, EPE, and the suppression and scoring before.

`evaluate.evaluate` runs a dataset's whole protocol; the other modules are its parts.
"""
