"""One HTML file about one or more runs: figures, curves, errors of keypoints, pictures, settings, differences.

`runs.py` reads working directories, `page.py` makes the page of them with `charts.py` and the template beside it.
"""
