"""p(x | z_0) over L levels and its expected cost."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.images import ImageSpec
from trainer.patches import Patches, sum_over_image

_NODES, _REACH = 48, 6.0  # of the trapezoidal rule, which converges exponentially for this analytic integrand
_EDGE = 32  # levels at either end whose own cost is computed; those between are so far from both ends that their costs
#             are equal


def level_costs(spec: ImageSpec, gamma_0: Tensor) -> Tensor:
    """[L] nats: E_q(z_0 | x_v)[-log p(v | z_0)] of one pixel of each level v, p(v | z_0) prop. to q(z_0 | x_v).

    That is VDM's reconstruction term (Kingma et al. 2021, section 3.2 and appendix). Pixels are independent given
    z_0, so it is an integral over one eps for each level; a table of L numbers takes the place of a sample with L
    logits for each value of each image, and has no variance. Of more than 64 levels those far from both ends are
    given the cost of the middle one, which is the highest: equal to 1e-9 while gamma_0 < -6, and a bound above.
    """
    dtype, device = gamma_0.dtype, gamma_0.device
    values = spec.scaled(torch.arange(spec.levels, device=device), dtype)
    half = (spec.levels + 1) // 2  # the costs are symmetric about the middle
    rows = values[:half] if half <= _EDGE else torch.cat([values[:_EDGE], values[half - 1 : half]])
    eps = torch.linspace(-_REACH, _REACH, _NODES, dtype=dtype, device=device)
    weights = torch.softmax(-0.5 * eps.square(), 0)
    distance = ((rows[:, None] - values) * torch.exp(-gamma_0 / 2))[:, None, :]  # in units of the noise
    # log q(z | x_u) - log q(z | x_v) = -(d^2 / 2 + d eps), z having been drawn for v
    log_ratio = -distance * (0.5 * distance + eps[:, None])  # [rows, nodes, L]
    costs = (torch.logsumexp(log_ratio, -1) * weights).sum(-1)
    costs = torch.cat([costs, costs[-1:].expand(half - len(costs))])
    return torch.cat([costs, costs[: spec.levels - half].flip(0)])


def reconstruction_cost(spec: ImageSpec, levels: Tensor, gamma_0: Tensor, patches: Patches | None) -> Tensor:
    """[B] nats: E_q[-log p(x | z_0)] of levels uint8 [B, C, H, W]."""
    return sum_over_image(level_costs(spec, gamma_0)[levels.long()], patches)


def level_log_prob(
    spec: ImageSpec, levels: Tensor, y: Tensor, gamma_0: Tensor, patches: Patches | None = None
) -> Tensor:
    """[B] nats: log p(x | z_0) for a given y = z_0 / alpha_0 [B, C, H, W]."""
    values = spec.scaled(torch.arange(spec.levels, device=y.device), y.dtype)
    logits = -0.5 * (y[..., None] - values).square() * torch.exp(-gamma_0)
    return sum_over_image(logits.log_softmax(-1).gather(-1, levels.long()[..., None])[..., 0], patches)
