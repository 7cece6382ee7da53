"""Bits back with one layer of latents (Townsend et al. 2019, BB-ANS, arXiv 1901.04866)."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.ans.stack import Stack
from trainer.coding.base import ImageCoder, no_noise, pop_pixels, push_pixels
from trainer.coding.latents import relative_posterior, relative_prior, relative_value
from trainer.condition_values import Condition
from trainer.models.vae import Vae


class VaeCoder(ImageCoder):
    """Pops z by q(z | x), pushes x by p(x | z), pushes z by p(z)."""

    def __init__(self, model: Vae, device: torch.device):
        self.model, self.device = model, device

    def encode(self, stack: Stack, images: Tensor, condition: Condition) -> None:
        model, noise = self.model, no_noise(stack, self.device)
        given = model.given(condition, noise)
        q = model.encode(images, noise, given)
        p = model.prior(given, q.mean)
        symbols = stack.pop(relative_posterior(q, p))
        push_pixels(stack, model.likelihood, model.decode(relative_value(symbols, p), given), images)
        stack.push(relative_prior(p), symbols)

    def decode(self, stack: Stack, condition: Condition) -> Tensor:
        model, noise = self.model, no_noise(stack, self.device)
        given = model.given(condition, noise)
        p = model.prior(given, torch.zeros(stack.lanes, *model.latent_shape, device=self.device))
        symbols = stack.pop(relative_prior(p))
        images = pop_pixels(stack, model.likelihood, model.decode(relative_value(symbols, p), given))
        stack.push(relative_posterior(model.encode(images, noise, given), p), symbols)
        return images
