"""Shards as they are: scanning tars, the index, checks against it."""
