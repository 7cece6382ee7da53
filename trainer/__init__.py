"""The unified trainer: torch and accelerate. Never imports ray, webdataset or our datasets/."""
