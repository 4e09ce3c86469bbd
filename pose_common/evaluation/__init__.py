"""Evaluation of both methods: predictions of a split, tasks and their result table, drawing."""
