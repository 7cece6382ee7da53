"""Ranks, devices and how they share a model."""
