"""The interface of image coders, and what all of them do with pixels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from trainer.ans.stack import Stack
from trainer.condition_values import Condition
from trainer.likelihoods import Likelihood
from trainer.noise import Noise


class ImageCoder:
    """Codes batches of images, all of one shape. `decode` undoes `encode`, operation by operation in reverse.

    Networks see the same batches both ways, since the last bits of their results depend on a batch's shape. So there is
    a row for each lane of the stack, also where fewer are coded (`stack.rows`): the others are zero.
    """

    def encode(self, stack: Stack, images: Tensor, condition: Condition) -> None:
        """Push `images`, uint8 [lanes, C, H, W]."""
        raise NotImplementedError

    def decode(self, stack: Stack, condition: Condition) -> Tensor:
        """Pop the images that were pushed last, uint8 [lanes, C, H, W]."""
        raise NotImplementedError


def no_noise(stack: Stack, device: torch.device) -> Noise:
    """The noise argument of networks that draw none in evaluation: it gives the batch's size and type."""
    return Noise(0, "evaluate", torch.zeros(stack.lanes, dtype=torch.int64, device=device))


def push_pixels(stack: Stack, likelihood: Likelihood, output: Tensor, images: Tensor) -> None:
    """Push `images` by p(x | output)."""
    for channels in reversed(likelihood.coded_channels):
        levels = images[:, channels].flatten(1).cpu().numpy().astype(np.int64)
        stack.push(likelihood.cumulative(output, images, channels), levels)


def pop_pixels(stack: Stack, likelihood: Likelihood, output: Tensor) -> Tensor:
    """Pop images by p(x | output), uint8 [lanes, C, H, W]."""
    images = output.new_zeros((len(output), *likelihood.spec.shape), dtype=torch.uint8)
    for channels in likelihood.coded_channels:
        levels = stack.pop(likelihood.cumulative(output, images, channels)).astype(np.uint8)
        images[:, channels] = torch.from_numpy(levels).to(images.device).reshape(images[:, channels].shape)
    return images
