"""Choose samples of a set by SQL over its columns; the result is an index of its own."""
