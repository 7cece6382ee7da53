"""Model FLOPs: counted by tracing a pass with shapes alone, and what share of a device's peak they come to (MFU)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from trainer.models.base import Model
from trainer.noise import Noise

# Of dense bfloat16 matrix products, FLOP/s, as the makers' data sheets give them; the first name that fits counts.
PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
}


class Pass(NamedTuple):
    """A forward and backward pass, for each image."""

    activations: float  # bytes that autograd keeps between the two
    flops: float  # of matrix products and convolutions, both ways; what is computed again in the second counts twice


def measure(model: Model, precision: torch.dtype) -> Pass:
    """What a pass under autocast to `precision` takes, from the shapes at two sizes of batch. Nothing is computed."""
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    some = next(iter(own.values()))
    mode = some.fake_mode if isinstance(some, FakeTensor) else FakeTensorMode(allow_non_fake_inputs=True)
    shapes: dict[str, Tensor] = {
        name: value if isinstance(value, FakeTensor) else mode.from_tensor(value) for name, value in own.items()
    }
    kept_anyway = {value.untyped_storage()._cdata for value in shapes.values()}
    # A compiled model is traced as it was written.
    eager = torch.compiler.set_stance("force_eager") if model._compiled_call_impl else contextlib.nullcontext()
    found = []
    for images in (2, 4):
        storages: dict[int, int] = {}

        def keep(tensor: Tensor, storages: dict[int, int] = storages) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in kept_anyway:
                storages[storage._cdata] = storage.nbytes()
            return tensor

        autocast = torch.autocast(some.device.type, precision, precision != torch.float32)
        with eager, mode, FlopCounterMode(display=False) as flops, autocast, torch.device(some.device):
            batch = torch.zeros(images, *model.spec.shape, dtype=torch.uint8)
            condition = {"label": torch.zeros(images, dtype=torch.int64)} if model.spec.classes else None
            noise = Noise(0, "train", torch.arange(images), images)
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                elbo = functional_call(model, shapes, (batch, condition, noise, torch.zeros(())))
            elbo.loss.sum().backward()
        found.append((sum(storages.values()), flops.get_total_flops()))
    (few_bytes, few_flops), (more_bytes, more_flops) = found
    return Pass((more_bytes - few_bytes) / 2, (more_flops - few_flops) / 2)


def utilisation(
    model: Model, bf16: bool, peak: float | None, say: Callable[[str], None] = lambda line: None
) -> float | None:
    """The share of a device's peak that one image a second comes to; None if the peak is not known.

    `peak` in FLOP/s; None: what the table has for this GPU, nothing for a CPU.
    """
    device = next(model.parameters()).device
    if peak is None and device.type == "cuda":
        gpu = torch.cuda.get_device_name(device)
        peak = next((flops for name, flops in PEAKS.items() if name in gpu), None)
        if peak is None:
            say(f"no MFU: the peak of {gpu} is not known here; trainer.peak_flops can say it")
    if peak is None:
        return None
    try:
        return measure(model, torch.bfloat16 if bf16 else torch.float32).flops / peak
    except Exception as error:  # of an operation that cannot be traced: no reason not to train
        say(f"no MFU: the model's FLOPs cannot be counted ({' '.join(str(error).split())[:200]})")
        return None
