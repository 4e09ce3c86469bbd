"""What is wrong with predictions: errors of every keypoint, what each kind costs, the worst people, pictures of them.

`measure.analyse` is the whole of it, from arrays to a document for JSON; `files.py` is what an evaluation calls.
"""
