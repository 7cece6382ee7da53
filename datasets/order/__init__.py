"""The order of the data: a pure function of a position."""
