"""Bits back with a diffusion over the latents of a first stage."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from trainer.ans.cumulative import Cells, Integers, parameters
from trainer.ans.stack import Stack
from trainer.coding.base import ImageCoder, no_noise, pop_pixels, push_pixels
from trainer.coding.chain import BINS, Chain
from trainer.coding.latents import Grid, tensor
from trainer.condition_values import Condition
from trainer.errors import TrainingError
from trainer.models.latent import Latent
from trainer.models.latent.first_stages.run import LadderStage

REACH = 16.0  # of u, which has about the variance 1
FINEST = 2.0**-10  # widest bins of u, as those of other latents


class LatentCoder(ImageCoder):
    """Pops u by q(u | x) and pushes x; pops u_0 by q(u_0 | u) and pushes u by p(u | u_0); then the chain above.

    u is the latent on the scale of the diffusion.
    """

    def __init__(self, model: Latent, device: torch.device):
        if isinstance(model.first_stage, LadderStage):
            raise TrainingError("the first stage is a ladder: no coder takes its levels below the diffusion yet")
        self.model, self.device = model, device
        self.chain = Chain(model.diffuser, REACH, device)
        self.scale = float(self.chain.sigma[0] / self.chain.alpha[0])  # of p(u | u_0)
        self.grid = Grid(min(FINEST, self.scale / BINS), REACH)

    def encode(self, stack: Stack, images: Tensor, condition: Condition) -> None:
        symbols = stack.pop(self._posterior(stack, images))
        u = self.grid.centres(symbols)
        push_pixels(stack, self.model.likelihood, self._output(stack, symbols), images)
        first = self.chain.pop_first(stack, u)
        stack.push(self._prior(first), symbols)
        self.chain.push(stack, first, condition)

    def decode(self, stack: Stack, condition: Condition) -> Tensor:
        first = self.chain.pop(stack, condition)
        symbols = stack.pop(self._prior(first))
        self.chain.push_first(stack, self.grid.centres(symbols), first)
        images = pop_pixels(stack, self.model.likelihood, self._output(stack, symbols))
        stack.push(self._posterior(stack, images), symbols)
        return images

    def _output(self, stack: Stack, symbols: Integers) -> Tensor:
        """The parameters of p(x | u)."""
        u = tensor(self.grid.centres(symbols), self.device).reshape(-1, *self.model.first_stage.shape)
        return self.model.first_stage.decode(self.model.scale.inverse(u), no_noise(stack, self.device)).output

    def _posterior(self, stack: Stack, images: Tensor) -> Cells:
        """q(u | x)."""
        q = self.model.scale.scaled(self.model.first_stage.encode(images, no_noise(stack, self.device)).q)
        return self.grid.posterior(parameters(q.mean), parameters(torch.exp(-q.log_scale)))

    def _prior(self, first: Integers) -> Cells:
        """p(u | u_0) = N(u_0 / alpha_0, (sigma_0 / alpha_0)^2 I)."""
        mean = self.chain.y_0(first)
        return self.grid.prior(mean, np.full(mean.shape, 1 / self.scale))
