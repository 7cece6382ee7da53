"""Bits back along a Markov chain of latents, one level at a time (Kingma et al. 2019, Bit-Swap, arXiv 1905.06845).

A level is pushed as soon as the one above it has been popped, so an image needs the initial bits of one level, not of
all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.ans.cumulative import Cells, Integers
from trainer.ans.stack import Stack
from trainer.coding.base import ImageCoder, no_noise, pop_pixels, push_pixels
from trainer.coding.latents import (
    absolute_posterior,
    absolute_prior,
    absolute_value,
    relative_posterior,
    relative_prior,
    relative_value,
)
from trainer.condition_values import Condition
from trainer.models.hvae import Hvae
from trainer.normal import Normal


class HvaeCoder(ImageCoder):
    """Pops z_1 by q(z_1 | x) and pushes x; pops z_t by q(z_t | z_t-1) and pushes z_t-1, up to z_T, pushed by p(z_T)."""

    def __init__(self, model: Hvae, device: torch.device):
        self.model, self.device = model, device

    def encode(self, stack: Stack, images: Tensor, condition: Condition) -> None:
        model, noise = self.model, no_noise(stack, self.device)
        given = model.given(condition, noise)
        top = self._top(given, stack)
        q = model.encode(images, noise, given)
        symbols = stack.pop(self._posterior(1, q, top))
        z = self._value(1, symbols, top)
        push_pixels(stack, model.likelihood, model.decode(z, given), images)
        for level in range(2, model.levels + 1):
            q = model.posterior(level, z, given)
            below, symbols = symbols, stack.pop(self._posterior(level, q, top))
            z = self._value(level, symbols, top)
            stack.push(absolute_prior(model.prior(level - 1, z, given)), below)
        stack.push(relative_prior(top), symbols)

    def decode(self, stack: Stack, condition: Condition) -> Tensor:
        model, noise = self.model, no_noise(stack, self.device)
        given = model.given(condition, noise)
        top = self._top(given, stack)
        symbols = stack.pop(relative_prior(top))
        z = self._value(model.levels, symbols, top)
        for level in range(model.levels, 1, -1):
            above, symbols = symbols, stack.pop(absolute_prior(model.prior(level - 1, z, given)))
            z = self._value(level - 1, symbols, top)
            stack.push(self._posterior(level, model.posterior(level, z, given), top), above)
        images = pop_pixels(stack, model.likelihood, model.decode(z, given))
        stack.push(self._posterior(1, model.encode(images, noise, given), top), symbols)
        return images

    def _top(self, given: Tensor | None, stack: Stack) -> Normal:
        """p(z_T | c)."""
        return self.model.top(given, torch.zeros(stack.lanes, self.model.latents[-1], device=self.device))

    def _posterior(self, level: int, q: Normal, top: Normal) -> Cells:
        return relative_posterior(q, top) if level == self.model.levels else absolute_posterior(q)

    def _value(self, level: int, symbols: Integers, top: Normal) -> Tensor:
        """z of a level, [lanes, size]."""
        return relative_value(symbols, top) if level == self.model.levels else absolute_value(symbols, self.device)
