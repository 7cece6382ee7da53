"""Sources of images for `jobs.pack`."""
