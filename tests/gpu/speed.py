"""Pace and memory of training steps: precision, memory format, and the networks of two public packages.

    python -m tests.gpu.speed [--device cuda] [--steps 30] [--batch 64] [--small]

A line for each setting: images/s; the model FLOP/s utilisation where the device's peak is known; the most memory that
PyTorch had allocated, and what is predicted (weights, gradients, moments, averages, and what autograd keeps).
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from accelerate.state import AcceleratorState

from tests.benchmarks import diffusion_peers
from tests.gpu.runs import Waves, begun, build
from tests.trainer.models import ALL_MODELS
from trainer.distributed.device import make_accelerator
from trainer.images import ImageSpec
from trainer.noise import Noise
from trainer.tracking.flops import measure, peak_of

CIFAR = ImageSpec(3, 32, 32)
WARM_UP = 5  # steps
_RESNET = {"kind": "resnet"}
_UNET = {"kind": "unet", "channels": 128, "multipliers": [1, 2, 2, 2], "blocks": 2, "dropout": 0.1}
_MAPS = [{"width": 128, "groups": 3}, {"shrink": 2, "width": 256, "groups": 4}]

# Networks of the size that people train on 32x32 pixels
LARGE: dict[str, tuple[ImageSpec, dict[str, Any]]] = {
    "vae resnet": (CIFAR, {"kind": "vae", "encoder": _RESNET, "decoder": _RESNET}),
    "ladder nvae": (CIFAR, {"kind": "ladder", "cells": {"kind": "nvae"}, "stages": _MAPS}),
    "ladder vdvae": (CIFAR, {"kind": "ladder", "cells": {"kind": "vdvae"}, "stages": _MAPS}),
    "unet": (CIFAR, {"kind": "diffusion", "denoiser": {"network": _UNET, "prediction": {"kind": "eps"}}}),
    "vdm_unet": (
        CIFAR,
        {"kind": "diffusion", "denoiser": {"network": {"kind": "vdm_unet", "depth": 8}, "fourier": [7, 8]}},
    ),
    "dit": (CIFAR, {"kind": "diffusion", "denoiser": {"network": {"kind": "dit"}, "prediction": {"kind": "v"}}}),
}
SMALL = {name: ALL_MODELS[name] for name in ("vae-conv", "diffusion-unet")}


class Pace(NamedTuple):
    """Of the training steps of one setting."""

    images_per_second: float
    mfu: float | None
    allocated: float | None  # bytes, the most; None on a CPU
    predicted: float | None  # bytes

    def __str__(self) -> str:
        mfu = f"{100 * self.mfu:.1f}%" if self.mfu is not None else "-"
        memory = [f"{size / 2**30:.2f}" if size is not None else "-" for size in (self.allocated, self.predicted)]
        return f"{self.images_per_second:10.1f} | {mfu:>6} | {memory[0]:>6} | {memory[1]:>6}"


def pace(
    spec: ImageSpec,
    config: dict[str, Any],
    device: torch.device,
    size: int,
    steps: int,
    precision: Any,
    channels_last: bool,
    compile: bool = False,
) -> Pace:
    """Of our training step: forward, backward, clipping, AdamW, three averages."""
    AcceleratorState._reset_state()  # it refuses a second precision
    accelerator = make_accelerator(precision)
    model = build(spec, config)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    costs = measure(model, dtype)
    if compile:
        model.compile()
    state = begun(model, accelerator, size, steps, channels_last=channels_last)
    batches = Waves(spec, size, device).training(0)

    def step() -> None:
        batch = next(batches)
        state.begin_step()
        elbo = state.parallel(batch.images, None, Noise(0, "train", batch.positions, size), state.seen)
        accelerator.backward(elbo.loss.sum() / size)
        state.end_step(size)

    seconds, allocated = timed(lambda count: [step() for _ in range(count)], device, steps)
    weights = sum(parameter.numel() * 4 for parameter in model.parameters())
    rate = size / seconds
    peak = peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return Pace(
        rate,
        costs.flops * rate / peak if peak else None,
        allocated,
        # weights, gradients, two moments, three averages
        7 * weights + size * costs.activations,
    )


def timed(take: Callable[[int], object], device: torch.device, steps: int) -> tuple[float, float | None]:
    """Seconds a step after the first few (on a CPU: of its own time, for one thread), and the most bytes allocated."""
    gpu = device.type == "cuda"
    clock = time.perf_counter if gpu else time.process_time
    take(min(WARM_UP, steps))
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    began = clock()
    take(steps)
    if gpu:
        torch.cuda.synchronize()
    seconds = (clock() - began) / steps
    return seconds, torch.cuda.max_memory_allocated() if gpu else None


def rows(device: torch.device, size: int, steps: int, small: bool) -> Iterator[str]:
    """The table of our own settings."""
    yield f"{'model':14} | {'precision':9} | {'memory format':13} |   images/s |    MFU | GiB most | GiB predicted"
    for name, (spec, config) in (SMALL if small else LARGE).items():
        for precision in ("fp32", "bf16") if small else ("fp32", "tf32", "bf16"):
            for channels_last in (False, True):
                found = pace(spec, config, device, size, steps, precision, channels_last)
                form = "channels_last" if channels_last else "contiguous"
                yield f"{name:14} | {precision:9} | {form:13} | {found}"
                if device.type == "cuda":
                    torch.cuda.empty_cache()
        if not small:
            found = pace(spec, config, device, size, steps, "bf16", False, compile=True)
            yield f"{name:14} | {'bf16':9} | {'compiled':13} | {found}"


def peers(device: torch.device, size: int, steps: int, channels: int) -> Iterator[str]:
    """Our step / a package's, in float32, at the same network; a line says which packages are not installed."""
    for name, make in diffusion_peers.PEERS.items():
        if importlib.util.find_spec(name.replace("-", "_")) is None:
            yield f"{name}: not installed"
            continue
        ours = pace(CIFAR, diffusion_peers.our_model(name, channels), device, size, steps, "fp32", False)
        _, take = make(channels, size)
        seconds, _ = timed(take, device, steps)
        theirs, mine = size / seconds, ours.images_per_second
        yield f"{name}: {theirs:.1f} images/s; ours {mine:.1f}, {mine / theirs:.2f} times as many"


def main() -> None:
    about = __doc__.partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.speed", description=about)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--channels", type=int, default=64, help="of the U-Nets that packages are compared with")
    parser.add_argument("--small", action="store_true", help="the models of the tests")
    options = parser.parse_args()
    device = torch.device(options.device)
    for row in rows(device, options.batch, options.steps, options.small):
        print(row, flush=True)
    for row in peers(device, options.batch, options.steps, options.channels):
        print(row, flush=True)


if __name__ == "__main__":
    main()
