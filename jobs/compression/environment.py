"""What a decoder must share with the encoder, so that networks repeat their results bit for bit."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import torch


def environment(device: torch.device) -> dict[str, str]:
    """Versions, device and arithmetic of this process, by name."""
    if device.type == "cuda":
        hardware = (
            f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
        )
    else:
        hardware = f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}"
    return {
        "device": hardware,
        "threads": str(torch.get_num_threads()),
        "precision": "float32",
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def differences(recorded: dict[str, str], here: dict[str, str]) -> str:
    """What differs, in words; "" if nothing does."""
    return ", ".join(
        f"{name} {recorded.get(name, 'unknown')} (here {value})"
        for name, value in here.items()
        if recorded.get(name) != value
    )


def _processor() -> str:
    """The name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
