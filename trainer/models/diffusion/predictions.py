"""Conversions of a denoising network's output, the only ones.

With y = z / alpha = x + n eps and n = sigma / alpha = exp(gamma / 2), every kind gives an estimate of x and the eps
that goes with it, (y - x) / n. The losses of the kinds differ in weights only: |eps - eps'|^2 = |x - x'|^2 / n^2
(Kingma et al. 2021, equation 12; Salimans and Ho 2022 for v; Luo 2022, section "Three equivalent interpretations").
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from trainer.config import Config
from trainer.gaussian_process import alpha, expand_to, sigma
from trainer.images import ImageSpec
from trainer.normal import bounded
from trainer.samplers.base import Denoised


class PlainConfig(Config):
    """The network gives x, eps, the score -eps / sigma, or v = alpha eps - sigma x."""

    kind: Literal["x0", "eps", "score", "v"]

    def build(self, spec: ImageSpec | None) -> Prediction:
        return {"x0": X0, "eps": Eps, "score": Score, "v": V}[self.kind]()


class LevelsConfig(Config):
    """The network gives a logit for each level, which Bayes' rule joins with what z says of the pixel itself."""

    kind: Literal["levels"]

    def build(self, spec: ImageSpec | None) -> Prediction:
        """Raises ValueError where there are no levels, as in a latent space."""
        if spec is None:
            raise ValueError("denoiser.prediction.kind: levels is for images; choose mixture, x0, eps, score or v")
        return Levels(spec)


class GaussianMixtureConfig(Config):
    """The network gives a mixture of Gaussians for each value, which Bayes' rule joins with what z says of it."""

    kind: Literal["mixture"]
    components: PositiveInt = 4
    """Components of each mixture."""

    def build(self, spec: ImageSpec | None) -> Prediction:
        return GaussianMixture(self.components)


PredictionConfig = Annotated[PlainConfig | LevelsConfig | GaussianMixtureConfig, Field(discriminator="kind")]


class Prediction:
    """Converts output [B, C * outputs_per_channel, H, W] to estimates, given z [B, C, H, W] and gamma [B]."""

    outputs_per_channel = 1

    def __call__(self, output: Tensor, z: Tensor, gamma: Tensor) -> Denoised:
        raise NotImplementedError


class X0(Prediction):
    def __call__(self, output: Tensor, z: Tensor, gamma: Tensor) -> Denoised:
        gamma = expand_to(gamma, z)
        return Denoised(output, (z - alpha(gamma) * output) / sigma(gamma))


class Eps(Prediction):
    def __call__(self, output: Tensor, z: Tensor, gamma: Tensor) -> Denoised:
        gamma = expand_to(gamma, z)
        return Denoised((z - sigma(gamma) * output) / alpha(gamma), output)


class Score(Prediction):
    def __call__(self, output: Tensor, z: Tensor, gamma: Tensor) -> Denoised:
        gamma = expand_to(gamma, z)
        return Denoised((z + sigma(gamma).square() * output) / alpha(gamma), -sigma(gamma) * output)


class V(Prediction):
    def __call__(self, output: Tensor, z: Tensor, gamma: Tensor) -> Denoised:
        gamma = expand_to(gamma, z)
        return Denoised(
            alpha(gamma) * z - sigma(gamma) * output,
            sigma(gamma) * z + alpha(gamma) * output,
        )


class Levels(Prediction):
    """p(v | z) proportional to exp(logit_v) N(z; alpha x_v, sigma^2): with logits that do not see z, the exact
    posterior of independent pixels, from which the network starts. For two levels it is tanh(alpha z / sigma^2 + b)."""

    def __init__(self, spec: ImageSpec):
        self.spec = spec
        self.outputs_per_channel = 1 if spec.levels == 2 else spec.levels

    def __call__(self, output: Tensor, z: Tensor, gamma: Tensor) -> Denoised:
        gamma = expand_to(gamma, z)
        n = torch.exp(gamma / 2)
        y = z / alpha(gamma)
        if self.spec.levels == 2:
            x = torch.tanh(y / n.square() + output)
            return Denoised(x, (y - x) / n)
        values = self.spec.scaled(torch.arange(self.spec.levels, device=z.device), z.dtype)
        logits = output.unflatten(1, (z.shape[1], -1)).movedim(2, -1)  # [B, C, H, W, L]
        weights = torch.softmax(logits - 0.5 * ((y[..., None] - values) / n[..., None]).square(), -1)
        x = (weights * values).sum(-1)  # no matrix product: autocast would round it to bfloat16
        return Denoised(x, (y - x) / n)


class GaussianMixture(Prediction):
    """The posterior mean of x = a mixture of N(m_k, s_k^2) seen as y = x + n eps, closed and without cancellation."""

    def __init__(self, components: int):
        self.components = components
        self.outputs_per_channel = 3 * components

    def __call__(self, output: Tensor, z: Tensor, gamma: Tensor) -> Denoised:
        gamma = expand_to(gamma, z)[..., None]
        n2 = torch.exp(gamma)
        y = z[..., None] / alpha(gamma)
        logits, m, log_s = output.unflatten(1, (z.shape[1], 3, -1)).movedim((2, 3), (0, -1))  # [B, C, H, W, K] each
        k = torch.linspace(-1, 1, self.components + 2, dtype=z.dtype, device=z.device)[1:-1]  # no two start alike
        m = m + k
        total = torch.exp(2 * bounded(log_s, 6.0)) + n2
        weights = torch.softmax(logits - 0.5 * (torch.log(total) + (y - m).square() / total), -1)
        eps = (weights * (y - m) / total).sum(-1) * torch.exp(gamma[..., 0] / 2)
        return Denoised(y[..., 0] - torch.exp(gamma[..., 0] / 2) * eps, eps)
