"""Whole sets of images as one stack, in batches of one image a lane."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from trainer.ans.stack import Stack
from trainer.coding.base import ImageCoder
from trainer.coding.diffusion import DiffusionCoder
from trainer.coding.hvae import HvaeCoder
from trainer.coding.ladder import LadderCoder
from trainer.coding.latent import LatentCoder
from trainer.coding.vae import VaeCoder
from trainer.condition_values import Condition, map_value
from trainer.distributed.device import full_precision
from trainer.errors import TrainingError
from trainer.models import Model
from trainer.models.diffusion import Diffusion
from trainer.models.hvae import Hvae
from trainer.models.ladder import Ladder
from trainer.models.latent import Latent
from trainer.models.vae import Vae

CODERS: dict[type[Model], Callable[[Any, torch.device], ImageCoder]] = {
    Vae: VaeCoder,
    Hvae: HvaeCoder,
    Ladder: LadderCoder,
    Diffusion: DiffusionCoder,
    Latent: LatentCoder,
}
IMAGES_A_LANE = 100  # at least, on average: what a lane begins with is paid once
MOST_LANES, MOST_HEADS = 32, 2048
Progress = Callable[[int], object]  # images done


def coder_of(model: Model, device: torch.device) -> ImageCoder:
    """The coder of a model on its device. Raises TrainingError if the model assigns no probabilities to images."""
    kind = CODERS.get(type(model))
    if kind is None:
        raise TrainingError(f"a {type(model).__name__} has no coder; trainer/coding has one for each family")
    if model.is_density:
        raise TrainingError("the model's likelihood is a density, which has no length in bits: it cannot compress")
    if model.spec.patches is not None:
        raise TrainingError("the model's images are of any shape (data.transform.patches): no coder takes them yet")
    return kind(model, device)


def lanes_for(images: int) -> int:
    """Images of a batch, for a set of `images`."""
    return max(1, min(MOST_LANES, images // IMAGES_A_LANE))


def width_for(images: int, lanes: int, dimensions: int) -> int:
    """Heads of each image: enough to keep NumPy busy, few beside the file."""
    return max(1, min(MOST_HEADS // lanes, images // (16 * lanes), dimensions // 4))


def encode_images(
    coder: ImageCoder, stack: Stack, images: Tensor, condition: Condition, progress: Progress = lambda done: None
) -> None:
    """Push images, uint8 [N, C, H, W] with their conditions, all on the coder's device."""
    with repeatable(images.device):
        for first in range(0, len(images), stack.lanes):
            batch = slice(first, first + stack.lanes)
            stack.rows = len(images[batch])
            coder.encode(stack, _filled(images[batch], stack.lanes), _rows(condition, batch, stack.lanes))
            progress(stack.rows)


def decode_images(
    coder: ImageCoder,
    stack: Stack,
    count: int,
    condition: Condition,
    device: torch.device,
    progress: Progress = lambda done: None,
) -> Tensor:
    """Pop all images, uint8 [count, C, H, W] on the CPU."""
    parts = []
    with repeatable(device):
        for first in reversed(range(0, count, stack.lanes)):
            batch = slice(first, min(first + stack.lanes, count))
            stack.rows = batch.stop - first
            images = coder.decode(stack, _rows(condition, batch, stack.lanes))
            parts.append(images[: stack.rows].cpu())
            progress(stack.rows)
    return torch.cat(parts[::-1])


@contextlib.contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Inside, the same operations on the same shapes give the same bits: float32, no search for fast kernels."""
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    try:
        with torch.no_grad(), full_precision(device):
            yield
    finally:
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = before


def _rows(condition: Condition, batch: slice, lanes: int) -> Condition:
    """The conditions of a batch, filled up like its images."""
    if condition is None:
        return None
    return {name: map_value(lambda part: _filled(part[batch], lanes), value) for name, value in condition.items()}


def _filled(values: Tensor, lanes: int) -> Tensor:
    """Values [n, ...] with rows of zeros added, contiguous and in memory of their own, whose alignment is the same
    both ways.
    """
    filled = values.new_zeros((lanes, *values.shape[1:]))
    filled[: len(values)] = values
    return filled
