"""How much memory, traffic, time and money a run takes, before it starts."""
