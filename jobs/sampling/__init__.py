"""Samples in units that any process can make."""
