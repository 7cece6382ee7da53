"""The loop and what it advances."""
