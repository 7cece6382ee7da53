"""The interface of likelihoods p(x | z_1)."""

from __future__ import annotations

from torch import Tensor, nn

from trainer.images import ImageSpec
from trainer.noise import Noise


class Likelihood(nn.Module):
    """p(x | output), for the decoder's output [B, outputs, H, W] in float32."""

    outputs_per_channel: int
    is_density = False  # a density over x in [-1, 1]^D, not a probability of levels: never bits per dimension

    def __init__(self, spec: ImageSpec):
        super().__init__()
        self.spec = spec

    @property
    def outputs(self) -> int:
        """Channels of the decoder's output."""
        return self.outputs_per_channel * self.spec.channels

    def log_prob(self, output: Tensor, levels: Tensor) -> Tensor:
        """[B] nats: log p(levels | output), levels uint8 [B, C, H, W]."""
        raise NotImplementedError

    def mean(self, output: Tensor) -> Tensor:
        """The expected image as the nearest levels, uint8 [B, C, H, W]."""
        raise NotImplementedError

    def sample(self, output: Tensor, noise: Noise) -> Tensor:
        """A draw from p(x | output), uint8 [B, C, H, W]."""
        raise NotImplementedError
