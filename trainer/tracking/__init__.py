"""How a run is shown: W&B, pictures, plots, progress, profiles, FLOPs."""
