"""Errors in data that its owner can correct."""


class DataError(ValueError):
    """One line with the shard, key or field, and what would be right."""
