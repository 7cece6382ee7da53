"""The accelerator of a process, the precision of its arithmetic, and the memory format of its model."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

import torch
import torch.distributed as dist
from torch import nn

from trainer.errors import TrainingError

if TYPE_CHECKING:
    from accelerate import Accelerator

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt(3)
_RENDEZVOUS = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # environment variables
MARGIN = 60.0  # seconds from the stack traces of a hanging rank to the timeout of its collectives

ResolvedPrecision = Literal["fp32", "tf32", "bf16"]
Precision = Literal["auto", "fp32", "tf32", "bf16"]
ReportPrecision = Literal["fp32", "bf16"]  # of evaluation and samples, whatever training used
ChannelsLast = Literal["auto"] | bool


def resolve_precision(precision: Precision, gpu: bool | None = None) -> ResolvedPrecision:
    """The precision that `auto` means: bf16 on GPU, fp32 on CPU. `gpu`: None for this machine."""
    if precision != "auto":
        return precision
    return "bf16" if (torch.cuda.is_available() if gpu is None else gpu) else "fp32"


def make_accelerator(precision: Precision, hang_timeout: float = 600.0) -> Accelerator:
    """Accelerate's wrapper for this rank, with autocast to bfloat16 if requested (auto: on a GPU).

    Collectives time out `MARGIN` seconds after `hang_timeout`, when the watchdog of each rank has printed where it
    waits. Raises TrainingError if the environment describes ranks that do not fit together, AssertionError if the ranks
    do not form one process group.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    AcceleratorState._reset_state()  # it keeps the first precision of a process; jobs.compare may train with several
    gpu = torch.cuda.is_available()
    if not gpu:
        keep_freed_memory()
    bf16 = resolve_precision(precision, gpu) == "bf16"
    allow_tf32(precision == "tf32")
    torch.backends.cudnn.benchmark = True  # a run has few shapes: the fastest kernel of each is searched once
    ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    group = InitProcessGroupKwargs(timeout=timedelta(seconds=hang_timeout + MARGIN))
    with _rendezvous():
        accelerator = Accelerator(cpu=not gpu, mixed_precision="bf16" if bf16 else "no", kwargs_handlers=[ddp, group])
    # Without this check ranks can each train alone, silently.
    expected = dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))
    assert accelerator.num_processes == expected, f"{accelerator.num_processes} ranks instead of {expected}"
    return accelerator


@contextlib.contextmanager
def _rendezvous() -> Iterator[None]:
    """Name the ranks that the block waits for, as WORLD_SIZE and RANK may be left over from another program; let Ctrl-C
    end the wait, during which Python does not run. Raises TrainingError if the variables do not fit together.
    """
    given = {name: os.environ.get(name, "") for name in _RENDEZVOUS}
    if dist.is_initialized() or "TORCHELASTIC_RUN_ID" in os.environ or given["WORLD_SIZE"] in ("", "0", "1"):
        yield
        return
    alone = "unset WORLD_SIZE and RANK to train with one process, or start the ranks with torchrun"
    numbers = [given[name] for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT")]
    if not all(text.isdecimal() for text in numbers) or not given["MASTER_ADDR"] or int(numbers[1]) >= int(numbers[0]):
        found = ", ".join(f"{name}={value or 'not set'}" for name, value in given.items())
        raise TrainingError(f"the environment describes no group of ranks ({found}); {alone}")
    others = f"{given['WORLD_SIZE']} ranks at {given['MASTER_ADDR']}:{given['MASTER_PORT']}"
    print(f"rank {given['RANK']} waits for {others}, as WORLD_SIZE says; {alone}", file=sys.stderr, flush=True)
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def allow_tf32(allow: bool) -> None:
    """Whether float32 matrix products and convolutions on a GPU may round their inputs to TF32 (10 bits of mantissa).

    PyTorch's defaults are yes for convolutions and no for matrix products.
    """
    # Not `fp32_precision`: after "ieee" there, torch 2.13 raises where Inductor reads cudnn.allow_tf32.
    torch.set_float32_matmul_precision("high" if allow else "highest")
    torch.backends.cudnn.allow_tf32 = allow


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Float32 is float32 inside the block: no autocast, and neither TF32 (CUDA) nor bf16 (oneDNN) in its products."""
    matmul, convolution = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    allow_tf32(False)
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


def to_device(model: nn.Module, device: torch.device, channels_last: ChannelsLast, sharding: str) -> None:
    """Move a model to `device`, in place, in the memory format that it is trained in.

    auto: channels_last for convolutions without group normalisation on a GPU, where tensor cores prefer it; CUDA's
    group normalisation copies its input to NCHW (docs/numerics.md). Never with FSDP2, which refuses parameters that
    are not contiguous.
    """
    model.to(device)
    modules = list(model.modules())
    if channels_last == "auto":
        convolutional = any(isinstance(module, nn.Conv2d) for module in modules)
        normalised = any(isinstance(module, nn.GroupNorm) for module in modules)
        channels_last = device.type == "cuda" and sharding == "ddp" and convolutional and not normalised
    if channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def keep_freed_memory() -> None:
    """Make glibc keep freed memory: a step allocates and frees the same buffers, and faulting their pages in again
    costs a small model on CPU a tenth of its time. Other C libraries are left as they are.
    """
    with contextlib.suppress(OSError, AttributeError):
        glibc = ctypes.CDLL(None)
        glibc.mallopt(_TRIM_THRESHOLD, 1 << 30)
        glibc.mallopt(_MMAP_THRESHOLD, 32 << 20)  # the largest value it accepts
