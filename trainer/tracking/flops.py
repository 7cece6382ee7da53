"""Model FLOPs, counted by tracing a pass with shapes alone, and the model FLOP/s utilisation (MFU) of a GPU.

MFU as Chowdhery et al. 2022 (PaLM, arXiv 2204.02311, appendix B): only what the model needs, no recomputation.
"""

from __future__ import annotations

import contextlib
import functools
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from trainer.models.base import Model
from trainer.models.example import example
from trainer.networks.unit import units

# Dense bfloat16 matrix products with float32 sums, FLOP/s, from the makers' data sheets. A product without an entry (a
# laptop's, a part of a GPU by MIG, one without bfloat16 units) has no MFU.
PEAKS = {
    "B200": 2250e12,
    "GB200": 2500e12,
    "H200": 989e12,
    "H200 NVL": 835e12,
    "GH200": 989e12,
    "H100": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIE": 756e12,
    "A100": 312e12,
    "A100 PCIE": 312e12,
    "A40": 149e12,
    "A30": 165e12,
    "A10": 125e12,
    "A10G": 70e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
# Parts of a device name that do not tell products apart: the maker, the family, memory, and the form that is usual.
_NEUTRAL = re.compile(r"NVIDIA|GEFORCE|SXM\d?|HBM3E?|\d+GB?")


def peak_of(name: str) -> float | None:
    """Peak FLOP/s of a GPU by its name as CUDA reports it, "NVIDIA H100 80GB HBM3"; None if the table lacks it."""
    parts = [part for part in re.split(r"[\s-]+", name.upper()) if not _NEUTRAL.fullmatch(part)]
    return PEAKS.get(" ".join(parts))


class UnitBytes(NamedTuple):
    """Bytes of a unit's forward pass, per image."""

    kept: float  # what autograd keeps of it
    inputs: float


class Pass(NamedTuple):
    """Costs of a forward and backward pass, per image."""

    activations: float  # bytes that autograd keeps between the two
    flops: float  # matrix products and convolutions, both ways; without recomputed activations
    units: tuple[UnitBytes, ...] = ()  # of `trainer.networks.unit.units`, in their order


class _ModelFlops(FlopCounterMode):
    """FlopCounterMode for grouped convolutions, without what activation checkpointing computes again."""

    def __init__(self) -> None:
        backward = {torch.ops.aten.convolution_backward: _convolution_backward}
        super().__init__(display=False, custom_mapping=backward)
        self.in_backward = False

    def _count_flops(self, func_packet: Any, out: Any, args: Any, kwargs: Any) -> Any:
        # Checkpointing enables gradients to repeat a forward pass inside the backward pass, which has them disabled.
        if self.in_backward and torch.is_grad_enabled():
            return out
        count: Callable[..., Any] = super()._count_flops
        return count(func_packet, out, args, kwargs)


def _convolution_backward(
    grad_shape: list[int],
    x_shape: list[int],
    w_shape: list[int],
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    output_mask: list[bool],
    **kwargs: Any,
) -> int:
    """FLOPs of the gradients of the input and of the weight, each as many as of the forward convolution.

    torch's own formula counts a grouped weight gradient as dense, `groups` times too many.
    """
    places = math.prod((x_shape if transposed else grad_shape)[2:])
    forward = 2 * x_shape[0] * places * math.prod(w_shape)
    return forward * (int(output_mask[0]) + int(output_mask[1]))


def measure(model: Model, precision: torch.dtype) -> Pass:
    """Costs of a pass under autocast to `precision`, from the shapes at two batch sizes. Nothing is computed."""
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    some = next(iter(own.values()))
    mode = some.fake_mode if isinstance(some, FakeTensor) else FakeTensorMode(allow_non_fake_inputs=True)
    shapes: dict[str, Tensor] = {
        name: value if isinstance(value, FakeTensor) else mode.from_tensor(value) for name, value in own.items()
    }
    kept_anyway = {value.untyped_storage()._cdata for value in shapes.values()}
    # A compiled model is traced as written.
    eager = torch.compiler.set_stance("force_eager") if model._compiled_call_impl else contextlib.nullcontext()
    found = []
    for images in (2, 4):
        kept = _KeptByUnit(model, kept_anyway)
        autocast = torch.autocast(some.device.type, precision, precision != torch.float32)
        with eager, mode, _ModelFlops() as flops, autocast, torch.device(some.device):
            inputs = example(model, images)
            with kept:
                elbo = functional_call(model, shapes, inputs)
            flops.in_backward = True
            elbo.loss.sum().backward()
        found.append((*kept.bytes(), flops.get_total_flops()))
    (few_kept, few_inputs, few_flops), (more_kept, more_inputs, more_flops) = found
    kept_bytes = [(more - few) / 2 for few, more in zip(few_kept, more_kept, strict=True)]
    input_bytes = [(more - few) / 2 for few, more in zip(few_inputs, more_inputs, strict=True)]
    by_unit = tuple(UnitBytes(*sizes) for sizes in zip(kept_bytes[1:], input_bytes, strict=True))
    return Pass(sum(kept_bytes), (more_flops - few_flops) / 2, by_unit)


class _KeptByUnit:
    """Inside the block what autograd keeps is counted, once each storage, with the unit that is being computed."""

    def __init__(self, model: Model, kept_anyway: set[int]):
        self.units, self.kept_anyway = units(model), kept_anyway
        self.storages: dict[int, tuple[int, int]] = {}  # number of the unit (0: between units) and bytes
        self.inputs = [0] * len(self.units)
        self.current = 0
        self._exits = contextlib.ExitStack()

    def bytes(self) -> tuple[list[int], list[int]]:
        """Kept between units, then in each unit; inputs of each unit."""
        kept = [0] * (1 + len(self.units))
        for unit, size in self.storages.values():
            kept[unit] += size
        return kept, self.inputs

    def __enter__(self) -> None:
        hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)
        self._exits.enter_context(hooks)
        for number, unit in enumerate(self.units, start=1):
            entry = unit.register_forward_pre_hook(functools.partial(self._enter, number))
            self._exits.callback(entry.remove)
            self._exits.callback(unit.register_forward_hook(self._leave).remove)

    def __exit__(self, *failure: object) -> None:
        self._exits.close()

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.kept_anyway:
            self.storages.setdefault(storage._cdata, (self.current, storage.nbytes()))
        return tensor

    def _enter(self, number: int, unit: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.current = number
        self.inputs[number - 1] = sum(value.nbytes for value in inputs if isinstance(value, Tensor))

    def _leave(self, *_: Any) -> None:
        self.current = 0


def utilisation(
    model: Model, bf16: bool, peak: float | None, say: Callable[[str], None] = lambda line: None
) -> float | None:
    """MFU at one image a second; None if the device's peak is unknown.

    `peak` in FLOP/s; None: from the table for this GPU, unknown for a CPU.
    """
    device = next(model.parameters()).device
    if peak is None and device.type == "cuda":
        gpu = torch.cuda.get_device_name(device)
        peak = peak_of(gpu)
        if peak is None:
            say(f"no MFU: unknown peak FLOP/s for {gpu}; set trainer.peak_flops")
    if peak is None:
        return None
    try:
        return measure(model, torch.bfloat16 if bf16 else torch.float32).flops / peak
    except Exception as error:  # an operation that cannot be traced is no reason not to train
        say(f"no MFU: the model's FLOPs cannot be counted ({' '.join(str(error).split())[:200]})")
        return None
