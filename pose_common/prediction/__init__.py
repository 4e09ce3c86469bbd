"""Prediction on pictures as people have them: files, folders, arrays, videos; results to draw, save and convert."""
