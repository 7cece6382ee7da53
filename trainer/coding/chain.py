"""Bits back along a diffusion's chain of T steps, one at a time (Bit-Swap, Kingma et al. 2019, arXiv 1905.06845).

The chain is the bound's own: q(z_t | z_s) noises upwards, p(z_s | z_t) = q(z_s | z_t, x = x'(z_t)) goes down (VDM,
equations 20 and 25). z_t has bins of one width, fine beside the narrowest distribution that ever codes it.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from trainer.ans.cumulative import Cells, Integers, parameters
from trainer.ans.stack import Stack
from trainer.ans.tails import Floats
from trainer.coding.base import no_noise
from trainer.coding.latents import Grid, tensor
from trainer.condition_values import Condition
from trainer.models.diffusion.diffuser import Diffuser

BINS = 8
"""Bins of z in the standard deviation of the narrowest distribution that codes it. 2 to 16 made no clear difference
for an untrained model of 8 x 8 pixels."""
SPREAD = 6.5  # standard deviations of noise that the bins reach beyond the signal; the outer two are open


class Chain:
    """z_0 .. z_T above x [lanes, n]."""

    def __init__(self, diffuser: Diffuser, reach: float, device: torch.device):
        """`reach`: bound on |x|, which rare values may exceed."""
        self.diffuser, self.device = diffuser, device
        self.steps = diffuser.chain_steps
        times = torch.linspace(0, 1, self.steps + 1, device=device)
        self.gammas = diffuser.schedule(times)[0].detach()  # rising
        gammas = self.gammas.double().cpu().numpy()
        self.alpha, self.sigma = np.sqrt(_sigmoid(-gammas)), np.sqrt(_sigmoid(gammas))
        self._fresh = -np.expm1(gammas[:-1] - gammas[1:])  # c of VDM's equations 25-28
        # of q(z_t | z_s) and of p(z_s | z_t), for each step from s up to t
        self._up = self.sigma[1:] * np.sqrt(self._fresh)
        self._down = self.sigma[:-1] * np.sqrt(self._fresh)
        ways = [np.r_[self.sigma[0], self._up], np.r_[self._down, np.inf]]
        widths = np.minimum(*ways) / BINS
        reaches = self.alpha * reach + SPREAD * self.sigma
        self.grids = [Grid(float(width), float(far)) for width, far in zip(widths, reaches, strict=True)]

    def pop_first(self, stack: Stack, x: Floats) -> Integers:
        """z_0 by q(z_0 | x)."""
        return stack.pop(self.grids[0].posterior(self.alpha[0] * x, _all(1 / self.sigma[0], x)))

    def push_first(self, stack: Stack, x: Floats, symbols: Integers) -> None:
        """Undo `pop_first`."""
        stack.push(self.grids[0].posterior(self.alpha[0] * x, _all(1 / self.sigma[0], x)), symbols)

    def push(self, stack: Stack, symbols: Integers, condition: Condition) -> None:
        """z_0, and the rest of the chain above it."""
        for step in range(self.steps):
            above = stack.pop(self._posterior(step, symbols))
            stack.push(self._prior(stack, step, above, condition), symbols)
            symbols = above
        stack.push(self._last(symbols), symbols)

    def pop(self, stack: Stack, condition: Condition) -> Integers:
        """Undo `push`; z_0."""
        shape = (stack.lanes, math.prod(self.diffuser.shape))
        symbols = stack.pop(self._last(np.zeros(shape, np.int64)))
        for step in reversed(range(self.steps)):
            below = stack.pop(self._prior(stack, step, symbols, condition))
            stack.push(self._posterior(step, below), symbols)
            symbols = below
        return symbols

    def y_0(self, symbols: Integers) -> Floats:
        """z_0 / alpha_0."""
        found: Floats = self.grids[0].centres(symbols) / self.alpha[0]
        return found

    def _posterior(self, step: int, below: Integers) -> Cells:
        """q(z_t | z_s), t = step + 1, s = step."""
        mean = self.alpha[step + 1] / self.alpha[step] * self.grids[step].centres(below)
        return self.grids[step + 1].posterior(mean, _all(1 / self._up[step], mean))

    def _prior(self, stack: Stack, step: int, above: Integers, condition: Condition) -> Cells:
        """p(z_s | z_t)."""
        z = self.grids[step + 1].centres(above)
        seen = tensor(z, self.device).reshape(stack.lanes, *self.diffuser.shape)
        gamma = self.gammas[step + 1].expand(stack.lanes)
        x = self.diffuser.denoiser(seen, gamma, condition, no_noise(stack, self.device)).x
        fresh = self._fresh[step]
        mean = self.alpha[step] * fresh * parameters(x)
        mean += (1 - fresh) * self.alpha[step] / self.alpha[step + 1] * z
        return self.grids[step].prior(mean, _all(1 / self._down[step], z))

    def _last(self, like: Integers) -> Cells:
        """p(z_T) = N(0, I)."""
        return self.grids[-1].prior(np.zeros(like.shape), np.ones(like.shape))


def _sigmoid(x: Floats) -> Floats:
    found: Floats = 1 / (1 + np.exp(-x))
    return found


def _all(value: float, like: Floats) -> Floats:
    return np.full(like.shape, value)
