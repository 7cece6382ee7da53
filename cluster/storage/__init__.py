"""One client for every URL."""
