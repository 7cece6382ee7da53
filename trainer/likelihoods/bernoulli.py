"""Binary pixels."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.ans.cumulative import Cumulative, bernoulli, parameters
from trainer.config import Config
from trainer.images import ImageSpec
from trainer.likelihoods.base import Likelihood
from trainer.noise import Noise


class BernoulliConfig(Config):
    """p(v = 1) = sigmoid(output), for images of two levels."""

    kind: Literal["bernoulli"] = "bernoulli"

    def build(self, spec: ImageSpec) -> Bernoulli:
        """Raises ValueError if the images have more than two levels."""
        if spec.levels != 2:
            raise ValueError(f"likelihood.kind: bernoulli is for images of 2 levels, these have {spec.levels}")
        return Bernoulli(spec)


class Bernoulli(Likelihood):
    """The decoder's output is the logit of a one."""

    outputs_per_channel = 1

    def log_prob(self, output: Tensor, levels: Tensor) -> Tensor:
        return -F.binary_cross_entropy_with_logits(output, levels.to(output.dtype), reduction="none").flatten(1).sum(1)

    def cumulative(self, output: Tensor, levels: Tensor, channels: slice) -> Cumulative:
        return bernoulli(parameters(output[:, channels]))

    def mean(self, output: Tensor) -> Tensor:
        return (output > 0).to(torch.uint8)

    def sample(self, output: Tensor, noise: Noise) -> Tensor:
        return (noise.uniform("x", self.spec.shape) < output.sigmoid()).to(torch.uint8)
