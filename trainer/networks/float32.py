"""Layers of a denoiser that stay in float32 under autocast.

A denoiser that estimates eps from z at low noise must see z to more than the 8 bits of bfloat16, and an output that is
x itself needs them too. The first and last layers are small; docs/numerics.md says what each is worth in bits.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn


def in_float32(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer(x)` in the type of the layer's weights, whatever autocast says."""
    with _no_autocast(x.device.type):
        return layer(x.to(next(layer.parameters()).dtype))


def first_layer(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer(x)` in float32, rounded to autocast's type afterwards: many channels keep more of z than z itself."""
    h = in_float32(layer, x)
    device = x.device.type
    rounded = device != "meta" and torch.is_autocast_enabled(device)
    return h.to(torch.get_autocast_dtype(device)) if rounded else h


def last_layer(layer: nn.Module, h: Tensor, exact: bool) -> Tensor:
    """`layer(h)`, in float32 if `exact`: where an output is an estimate and not one of many logits."""
    return in_float32(layer, h) if exact else layer(h)


def _no_autocast(device: str) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if device == "meta" else torch.autocast(device, enabled=False)  # meta has none
