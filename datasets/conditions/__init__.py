"""What images are conditioned on: classes, captions, vectors and crops, read from the members of a sample."""
