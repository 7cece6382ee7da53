"""The unified trainer: torch and accelerate. Never imports ray, webdataset or our datasets/."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.checkpoints.export import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """`trainer.load`, imported when it is asked for: packing and indexing need no PyTorch."""
    if name == "load":
        from trainer.checkpoints.export import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
