"""Named tensors as safetensors bytes and back: shapes and dtypes are kept, and nothing is ever unpickled."""

from __future__ import annotations

from collections.abc import Mapping

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from trainer.errors import TrainingError


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """The tensors, from whatever device, as the content of a .safetensors file."""
    # Copies, as the format refuses tensors that share memory (tied weights).
    copies = {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }
    return safetensors.torch.save(copies)


def unpack(where: str, data: bytes) -> dict[str, Tensor]:
    """The tensors of a file's content, on the CPU. Raises TrainingError, naming `where`, if it is not safetensors."""
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise TrainingError(f"{where}: is not a safetensors file ({error})") from error
