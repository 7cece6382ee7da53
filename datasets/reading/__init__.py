"""From positions to decoded images: shards, windows, caches."""
