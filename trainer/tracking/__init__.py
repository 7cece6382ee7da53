"""What a person sees: W&B, pictures, progress, profiles."""
