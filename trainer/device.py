"""The accelerator of a process: a GPU if there is one, else the CPU."""

from __future__ import annotations

import os
from typing import Literal

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

Precision = Literal["auto", "fp32", "bf16"]


def make_accelerator(precision: Precision) -> Accelerator:
    """Accelerate's wrapper for this rank, with autocast to bfloat16 where asked for (auto: on GPU)."""
    gpu = torch.cuda.is_available()
    bf16 = precision == "bf16" or (precision == "auto" and gpu)
    ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    accelerator = Accelerator(cpu=not gpu, mixed_precision="bf16" if bf16 else "no", kwargs_handlers=[ddp])
    # Without this check ranks can each train alone, in silence.
    expected = dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))
    assert accelerator.num_processes == expected, f"{accelerator.num_processes} ranks instead of {expected}"
    return accelerator
