"""The YAML schema of a run: loading, checks, what may change on resume."""
