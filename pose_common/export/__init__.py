"""Prediction as a file that runs without this code."""
