"""Run an encoder over a set and write what it makes of the samples as encoded shards."""
