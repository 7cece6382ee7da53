"""A multi-host Ray cluster on one Linux machine."""
