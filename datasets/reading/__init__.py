"""From the index to pixels: members, decoding, transforms, caches."""
