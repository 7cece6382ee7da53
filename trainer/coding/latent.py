"""Bits back with a diffusion over a VAE's latents."""

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
from trainer.models.latent import Latent
from trainer.normal import Normal

REACH = 16.0  # of the VAE's latents, whose first prior was N(0, I)
FINEST = 2.0**-10  # widest bins of z, as those of other latents


class LatentCoder(ImageCoder):
    """Pops z by q(z | x) and pushes x; pops z_0 by q(z_0 | z) and pushes z by p(z | z_0); then the chain above."""

    def __init__(self, model: Latent, device: torch.device):
        self.model, self.device = model, device
        self.chain = Chain(model.diffuser, REACH, device)
        self.scale = float(self.chain.sigma[0] / self.chain.alpha[0])  # of p(z | z_0)
        self.grid = Grid(min(FINEST, self.scale / BINS), REACH)

    def encode(self, stack: Stack, images: Tensor, condition: Condition) -> None:
        vae = self.model.vae
        symbols = stack.pop(self._posterior(vae.encode(images, no_noise(stack, self.device))))
        z = self.grid.centres(symbols)
        push_pixels(stack, vae.likelihood, vae.decode(tensor(z, self.device)), images)
        first = self.chain.pop_first(stack, z)
        stack.push(self._prior(first), symbols)
        self.chain.push(stack, first, condition)

    def decode(self, stack: Stack, condition: Condition) -> Tensor:
        vae = self.model.vae
        first = self.chain.pop(stack, condition)
        symbols = stack.pop(self._prior(first))
        z = self.grid.centres(symbols)
        self.chain.push_first(stack, z, first)
        images = pop_pixels(stack, vae.likelihood, vae.decode(tensor(z, self.device)))
        stack.push(self._posterior(vae.encode(images, no_noise(stack, self.device))), symbols)
        return images

    def _posterior(self, q: Normal) -> Cells:
        """q(z | x)."""
        return self.grid.posterior(parameters(q.mean), parameters(torch.exp(-q.log_scale)))

    def _prior(self, first: Integers) -> Cells:
        """p(z | z_0) = N(z_0 / alpha_0, (sigma_0 / alpha_0)^2 I)."""
        mean = self.chain.y_0(first)
        return self.grid.prior(mean, np.full(mean.shape, 1 / self.scale))
