"""The accelerator of a process: a GPU if there is one, else the CPU."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from accelerate import Accelerator

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt(3)
MARGIN = 60.0  # seconds from the stacks of a rank that hangs to the end of its collectives

ResolvedPrecision = Literal["fp32", "bf16"]
Precision = Literal["auto", "fp32", "bf16"]
ReportPrecision = Literal["fp32", "bf16"]  # of evaluation and samples, whatever training used


def resolve_precision(precision: Precision, gpu: bool | None = None) -> ResolvedPrecision:
    """The precision that `auto` means: bf16 on GPU, fp32 on CPU. `gpu`: None for this machine."""
    if precision != "auto":
        return precision
    return "bf16" if (torch.cuda.is_available() if gpu is None else gpu) else "fp32"


def make_accelerator(precision: Precision, hang_timeout: float = 600.0) -> Accelerator:
    """Accelerate's wrapper for this rank, with autocast to bfloat16 where asked for (auto: on GPU).

    The process group, if this makes it, gives a collective up a while after `hang_timeout` seconds, when the ranks
    have told what they wait for (watchdog).
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    gpu = torch.cuda.is_available()
    if not gpu:
        keep_freed_memory()
    bf16 = resolve_precision(precision, gpu) == "bf16"
    ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    group = InitProcessGroupKwargs(timeout=timedelta(seconds=hang_timeout + MARGIN))
    accelerator = Accelerator(cpu=not gpu, mixed_precision="bf16" if bf16 else "no", kwargs_handlers=[ddp, group])
    # Without this check ranks can each train alone, in silence.
    expected = dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))
    assert accelerator.num_processes == expected, f"{accelerator.num_processes} ranks instead of {expected}"
    return accelerator


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Float32 is float32 inside the block: no autocast, and neither TF32 (CUDA) nor bf16 (oneDNN) in its products."""
    matmul, convolution = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolution


def report_precision(precision: ReportPrecision, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """The block computes what is reported: in full float32, or under autocast to bfloat16."""
    if precision == "fp32":
        return full_precision(device)
    return torch.autocast(device.type, torch.bfloat16)


def keep_freed_memory() -> None:
    """Let glibc keep what is freed. Every step frees as much as it takes, and to give it back to the system and fault
    it in again costs a small model on CPU a tenth of its time. Other C libraries are left as they are.
    """
    with contextlib.suppress(OSError, AttributeError):
        glibc = ctypes.CDLL(None)
        glibc.mallopt(_TRIM_THRESHOLD, 1 << 30)
        glibc.mallopt(_MMAP_THRESHOLD, 32 << 20)  # the most that it takes
