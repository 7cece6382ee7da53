"""Encoders for `jobs.encode`: latents of a VAE, text encoders of `transformers`, the bound of each image."""
