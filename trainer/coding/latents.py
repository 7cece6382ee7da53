"""Latents in integers: bins of one width, at whose centres the networks see z.

Bins of one width also serve latents whose prior is not known when they are popped, which bins of equal prior mass do
not. A finer grid takes more initial bits: log2 of the ratio for each latent of the first image of a lane.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from trainer.ans.cumulative import Cells, Integers, parameters
from trainer.ans.tails import NORMAL, Floats
from trainer.normal import Normal


class Grid:
    """`size` bins of `width` around 0, the outer two open."""

    def __init__(self, width: float, reach: float):
        """`reach`: how far from 0 the bins go."""
        self.width, self.size = width, 2 * int(np.ceil(reach / width))

    def prior(self, mean: Floats, inverse_scale: Floats) -> Cells:
        """The bins' masses under N(mean, scale^2) [B, n] to push by: every bin has a slot."""
        return Cells(NORMAL, mean, inverse_scale, self.width, self.size)

    def posterior(self, mean: Floats, inverse_scale: Floats) -> Cells:
        """The same to pop by: no slot is given away to bins that have no mass."""
        return Cells(NORMAL, mean, inverse_scale, self.width, self.size, floor=0)

    def centres(self, symbols: Integers) -> Floats:
        """The centres of bins [B, n]."""
        return (symbols.astype(np.float64) - self.size / 2 + 0.5) * self.width


RELATIVE = Grid(2.0**-10, 16.0)
"""Of latents in units of their prior: (z - mean) / scale."""
ABSOLUTE = Grid(2.0**-10, 64.0)
"""Of latents whose prior depends on others that are popped later."""


def relative_posterior(q: Normal, p: Normal) -> Cells:
    """q(z) [B, ...] over RELATIVE bins of p."""
    inverse = torch.exp(p.log_scale - q.log_scale)
    mean = (q.mean - p.mean) * torch.exp(-p.log_scale)
    return RELATIVE.posterior(parameters(mean), parameters(inverse))


def relative_prior(like: Normal) -> Cells:
    """p(z) over its own RELATIVE bins, the same whatever p is."""
    shape = like.mean.flatten(1).shape
    return RELATIVE.prior(np.zeros(shape), np.ones(shape))


def relative_value(symbols: Integers, p: Normal) -> Tensor:
    """z [B, ...] for the bins of all rows."""
    return p.sample(tensor(RELATIVE.centres(symbols), p.mean.device).reshape(p.mean.shape))


def absolute_posterior(q: Normal) -> Cells:
    """q(z) [B, n] over ABSOLUTE bins."""
    return ABSOLUTE.posterior(parameters(q.mean), parameters(torch.exp(-q.log_scale)))


def absolute_prior(p: Normal) -> Cells:
    """p(z) [B, n] over ABSOLUTE bins."""
    return ABSOLUTE.prior(parameters(p.mean), parameters(torch.exp(-p.log_scale)))


def absolute_value(symbols: Integers, device: torch.device) -> Tensor:
    """z [B, n] for the bins of all rows."""
    return tensor(ABSOLUTE.centres(symbols), device)


def tensor(values: Floats, device: torch.device) -> Tensor:
    """Values [B, n] as networks take them: float32."""
    return torch.from_numpy(values).to(device, torch.float32)
