"""The run folder: attempts, commits, metrics, exports."""
