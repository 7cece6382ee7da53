"""The interface of likelihoods p(x | z_1)."""

from __future__ import annotations

from torch import Tensor, nn

from trainer.ans.cumulative import Cumulative
from trainer.errors import TrainingError
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

    @property
    def coded_channels(self) -> list[slice]:
        """The channels that `cumulative` takes together, in the order in which they depend on each other."""
        return [slice(0, self.spec.channels)]

    def cumulative(self, output: Tensor, levels: Tensor, channels: slice) -> Cumulative:
        """p of the levels of `channels` in integers, [B, n] for the n values of these channels, for entropy coding.

        Of `levels`, uint8 [B, C, H, W], only the channels before count. The same bits for the same arguments of the
        same shapes. Raises TrainingError for a density.
        """
        raise TrainingError(f"a {type(self).__name__} likelihood is a density, which has no length in bits")

    def mean(self, output: Tensor) -> Tensor:
        """The expected image as the nearest levels, uint8 [B, C, H, W]."""
        raise NotImplementedError

    def sample(self, output: Tensor, noise: Noise) -> Tensor:
        """A draw from p(x | output), uint8 [B, C, H, W]."""
        raise NotImplementedError
