"""The interface that the loop, evaluation and sampling know."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainer.elbo import Elbo
from trainer.images import ImageSpec
from trainer.noise import Noise

Condition = dict[str, Tensor] | None  # {"label": int64 [B]}, later captions


class Picture(NamedTuple):
    """Images to be shown as a grid."""

    images: Tensor  # uint8 levels [N, C, H, W]
    columns: int | None = None  # None: about a square


class Model(nn.Module):
    """A model that maximises an evidence lower bound.

    `forward` is the one entry in training, so that DDP and FSDP see every parameter. Nothing in it may depend on how
    the batch is split (no BatchNorm).
    """

    spec: ImageSpec
    is_density = False  # True: the bound is that of a density, in nats, and never bits per dimension

    def forward(self, images: Tensor, condition: Condition, noise: Noise, progress: Tensor) -> Elbo:
        """The bound of `images` (uint8 levels [B, C, H, W]); `progress` is the number of images seen, a scalar."""
        raise NotImplementedError

    def sample(self, noise: Noise, condition: Condition = None, temperature: float = 1.0) -> Tensor:
        """New images, uint8 levels [B, C, H, W], one for each position of `noise`."""
        raise NotImplementedError

    def reconstruct(self, images: Tensor, condition: Condition, noise: Noise) -> Tensor:
        """What the decoder makes of the images' own latents, uint8 levels [B, C, H, W]."""
        raise NotImplementedError

    def log_weights(self, images: Tensor, condition: Condition, noise: Noise, k: int) -> Tensor:
        """[B, k] nats: log p(x, z) - log q(z | x) for k draws of z (Burda et al. 2016, equation 8)."""
        raise NotImplementedError

    def pictures(self, images: Tensor | None, condition: Condition, noise: Noise) -> dict[str, Picture]:
        """What a person should see: samples, one for each position of `noise`, and reconstructions of held-out
        `images` beside them, if there are any.

        A model with more to show (levels of a hierarchy, steps of a diffusion) adds to it.
        """
        shown = {"samples": Picture(self.sample(noise))}
        if images is not None:
            made = self.reconstruct(images, condition, replace(noise, positions=noise.positions[: len(images)]))
            shown["reconstructions"] = Picture(torch.stack([images, made], dim=1).flatten(0, 1))
        return shown
