"""Exports as folders that `diffusers` opens. The other modules here are copied into them."""
