"""The unified trainer: torch and accelerate. Never imports ray, webdataset or our datasets/."""

from trainer.export import load

__all__ = ["load"]
