"""The evidence lower bound, term by term, and the only conversion from nats to bits per dimension.

log p(x) >= E_q[log p(x | z_1)] - sum of rates  (source text, equations 3 and 16-18; Luo 2022, arXiv 2208.11970)
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor


class Elbo(NamedTuple):
    """The result of every model: nats, float32, one entry per image."""

    distortion: Tensor  # [B]  E_q[-log p(x | z_1)]
    rates: dict[str, Tensor]  # [B] each: the signed contribution of each level ("z1".."zT"; "prior", "diffusion"):
    #                           a KL where it is closed, a sampled log-ratio where not
    objective: Tensor | None = None  # [B]  minimised instead of the bound (KL warm-up, free bits, min-SNR ...)
    dimensions: Tensor | None = None  # [B]  D of each image where they differ

    @property
    def negative_bound(self) -> Tensor:
        """[B] nats: -ELBO, with beta = 1 and without free bits or re-weighting."""
        total = self.distortion
        for rate in self.rates.values():
            total = total + rate
        return total

    @property
    def loss(self) -> Tensor:
        """[B] nats, minimised in training: the objective if the model has one of its own, else the bound."""
        return self.negative_bound if self.objective is None else self.objective


def bits_per_dimension(nats: float, dimensions: float) -> float:
    """Nats per image to bits per dimension (one channel of one pixel); the only conversion in the project.

    Where images differ in size, both are means over the images, so that it is total bits / total dimensions.
    """
    return nats / (dimensions * math.log(2))
