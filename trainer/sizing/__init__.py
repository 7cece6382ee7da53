"""How much memory, traffic and computation a training step takes, from shapes alone."""
