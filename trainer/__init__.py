"""The unified trainer: torch and accelerate. Never imports ray, webdataset or our datasets/."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.checkpoints.export import load
    from trainer.sampling import sample

__all__ = ["load", "sample"]


def __getattr__(name: str) -> Any:
    """`load` and `sample`, imported when they are asked for: packing and indexing need no PyTorch."""
    if name == "load":
        from trainer.checkpoints.export import load

        return load
    if name == "sample":
        from trainer.sampling import sample

        return sample
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
