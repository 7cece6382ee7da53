"""Batches of a rank, filled in this process or by loader processes."""
