"""Evaluations of finished runs: a model opened with its images, and each kind of report about them."""
