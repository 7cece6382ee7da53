"""The interface of first stages: frozen models that encode images to the latent z that is diffused, and decode it."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from trainer.images import ImageSpec
from trainer.likelihoods import Likelihood
from trainer.models.ladder.group import Draw
from trainer.noise import Noise
from trainer.normal import Normal


class Encoding(NamedTuple):
    """The image as a first stage sees it."""

    q: Normal  # q(z | x), [B, *shape]
    features: Any = None  # what the posteriors of the levels below z are computed from


class Decoded(NamedTuple):
    """What follows from z."""

    output: Tensor  # parameters of p(x | z and the levels below)
    below: dict[str, Draw]  # levels of latents below z, from the top down


class FirstStage(nn.Module):
    """q(z | x) and p(x | z) with fixed weights; between z and x there may be more levels of latents."""

    spec: ImageSpec
    likelihood: Likelihood
    shape: tuple[int, int, int]  # of z: (c, h, w); (n, 1, 1) for a vector

    def __init__(self, model: nn.Module, spec: ImageSpec, likelihood: Likelihood, shape: tuple[int, ...]):
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.spec, self.likelihood = spec, likelihood
        self.natural_shape = shape  # of z: (c, h, w), or (n,) for a vector
        channels, height, width = shape if len(shape) == 3 else (shape[0], 1, 1)
        self.shape = channels, height, width

    def train(self, mode: bool = True) -> Self:
        """Always in evaluation mode."""
        return super().train(False)

    def encode(self, images: Tensor, noise: Noise) -> Encoding:
        """From levels uint8 [B, C, H, W]."""
        raise NotImplementedError

    def decode(self, z: Tensor, noise: Noise, encoding: Encoding | None = None) -> Decoded:
        """From z [B, *shape]. The levels below z are drawn from their priors, or from their posteriors given the image
        of `encoding`.
        """
        raise NotImplementedError

    posterior_suffices = True  # `decode` needs no more of an `Encoding` than q

    @property
    def takes_tiles(self) -> bool:
        """Whether `decode` takes a rectangle of z of any size, and makes the pixels above it."""
        return False

    def prior(self, like: Tensor) -> Normal | None:
        """p(z) of the first stage by itself, of the shape of `like` [B, *shape]; None: it has none."""
        return Normal.standard(like)

    def sums(self, images: Tensor, z: Tensor, noise: Noise) -> Tensor:
        """float64 [n]: what `fit` needs to know of `images` and a draw of their z, summed over the images."""
        return torch.zeros(0, dtype=torch.float64, device=z.device)

    def fit(self, sums: Tensor) -> None:
        """Set the constants that depend on the training set, once, from `sums` added up over images of it."""


def reshaped(normal: Normal, shape: tuple[int, ...]) -> Normal:
    """The same distribution of values [B, *shape]."""
    return Normal(normal.mean.reshape(-1, *shape), normal.log_scale.reshape(-1, *shape))
