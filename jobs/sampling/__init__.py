"""Samples of a run, made by many processes."""
