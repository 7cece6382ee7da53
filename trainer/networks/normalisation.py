"""Normalisation within one image, whatever else is in the batch: over groups of channels (Wu and He 2018), or layers.

Under FSDP2 with bfloat16 the weights of a unit are bfloat16 during its passes, and the input may be float32, which the
CPU's kernels refuse: such weights are widened.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GroupNorm(nn.GroupNorm):
    """PyTorch's, except that on CUDA it keeps maps in channels_last: PyTorch's kernel there copies them to NCHW, and
    the next convolution copies them back."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cuda" and _is_channels_last(x) and not torch.compiler.is_compiling():
            return pointwise_group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        return F.group_norm(x, self.num_groups, _widened(self.weight, x), _widened(self.bias, x), self.eps)


class LayerNorm(nn.LayerNorm):
    """PyTorch's, of weights that may be narrower than the input."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = _widened(self.weight, x), _widened(self.bias, x)
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


def _widened(weight: Tensor, x: Tensor) -> Tensor:
    return weight.to(torch.promote_types(weight.dtype, x.dtype))


def pointwise_group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The same as F.group_norm of maps [B, C, H, W] by reductions and pointwise operations, which keep the strides.

    Statistics are in float32 or wider, as is the result.
    """
    wide = x if x.dtype == torch.float64 else x.float()
    variance, mean = torch.var_mean(wide.unflatten(1, (groups, -1)), (2, 3, 4), correction=0)  # [B, groups]
    channels = x.shape[1] // groups
    scale = weight * torch.rsqrt(variance + eps).repeat_interleave(channels, 1)  # [B, C]
    shift = bias - mean.repeat_interleave(channels, 1) * scale
    return torch.addcmul(shift[:, :, None, None], wide, scale[:, :, None, None])


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def most_groups(channels: int) -> GroupNorm:
    """Up to 32 groups, whatever their size: of the denoising U-Nets."""
    return GroupNorm(next(n for n in range(min(32, channels), 0, -1) if channels % n == 0), channels)


def wide_groups(channels: int) -> GroupNorm:
    """Up to 32 groups of at least four channels: a group of one channel would lose its mean."""
    return GroupNorm(math.gcd(32, channels, max(channels // 4, 1)), channels)
