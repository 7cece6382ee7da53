"""One group of latents of the walk down: its prior, its posterior, and the effect of its draw on the features."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainer.models.ladder.config import StageConfig
from trainer.networks.cells import Cells
from trainer.networks.residual import scale_down
from trainer.networks.unit import Unit
from trainer.normal import WIDEST, Normal, at_most, bounded


class Draw(NamedTuple):
    """A group's latents [B, ...], their prior, and their posterior if they were drawn from it."""

    z: Tensor
    p: Normal
    q: Normal | None


class Group(Unit):
    """p(z | above), N(0, I) if `standard`; q(z | above, x); and the features below a draw of z from one of them."""

    def __init__(self, cells: Cells, stage: StageConfig, side: int, depth: int, standard: bool):
        super().__init__()
        width, latent = stage.width, stage.latent
        self.latent = latent
        adds = width if cells.prior_adds else 0
        self.prior_head = None if standard else cells.head(width, width, 2 * latent + adds, side)
        self.posterior_head = cells.head(2 * width, width, 2 * latent, side)
        self.merge = cells.project(latent, width)
        scale_down(self.merge, depth)
        self.cells = nn.Sequential(*(cells.top_down(width, side, depth) for _ in range(stage.cells_down)))

    def forward(self, h: Tensor, eps: Tensor, features: Tensor | None = None) -> tuple[Tensor, Draw]:
        """From features `h` and, for a posterior, those of the image: the features below, and the draw.

        eps ~ N(0, I) [B, latent, ...] also decides the type of the latents and their distributions.
        """
        p, h = self.prior(h, eps)
        q = None if features is None else self.posterior(h, features, p)
        z = (q or p).sample(eps)
        return self.below(h, z), Draw(z, p, q)

    def prior(self, h: Tensor, eps: Tensor) -> tuple[Normal, Tensor]:
        """p(z | above), and the features plus the residual of its head."""
        if self.prior_head is None:
            return Normal.standard(eps), h
        out = self.prior_head(h)
        mean, log_scale = out[:, : 2 * self.latent].to(eps.dtype).chunk(2, dim=1)
        added = out[:, 2 * self.latent :]
        return Normal(mean, bounded(log_scale)), h + added if added.shape[1] else h

    def posterior(self, h: Tensor, features: Tensor, p: Normal) -> Normal:
        """q(z | above, x), relative to the prior."""
        out = self.posterior_head(torch.cat([h, features], dim=1))
        return residual_normal(p, *out.to(p.mean.dtype).chunk(2, dim=1))

    def below(self, h: Tensor, z: Tensor) -> Tensor:
        """The features below, from those that `prior` gives and a draw."""
        return self.cells(h + self.merge(z))


def residual_normal(p: Normal, shift: Tensor, log_ratio: Tensor) -> Normal:
    """N(mu + shift, (sigma * ratio)^2) for p = N(mu, sigma^2), the ratio bounded (NVAE, Vahdat 2020, section 3.2)."""
    return Normal(p.mean + shift, p.log_scale + at_most(bounded(log_ratio), WIDEST))
