"""A discretised likelihood for a decoder that outputs means alone: one scale for each channel, fitted once."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.ans.cumulative import Cumulative
from trainer.likelihoods.base import Likelihood
from trainer.likelihoods.discretised import Discretised
from trainer.noise import Noise

STEP = 0.25
GRID = torch.arange(-6.0, 0.5 + STEP, STEP, dtype=torch.float64)
"""Log-scales whose costs `fit` compares; the best is the vertex of the parabola through the three around the least."""
INITIAL = -2.0


class FixedScale(Likelihood):
    """p(x | output) of `kind` with the mean `output` [B, C, H, W], in the coordinates of `ImageSpec.cell_centre`."""

    outputs_per_channel = 1
    log_scale: Tensor  # [C, 1, 1]

    def __init__(self, kind: Discretised):
        super().__init__(kind.spec)
        self.kind = kind
        self.register_buffer("log_scale", torch.full((kind.spec.channels, 1, 1), INITIAL))

    def log_prob(self, output: Tensor, levels: Tensor) -> Tensor:
        return self.kind.log_prob_values(output, self._scale_like(output), levels).flatten(1).sum(1)

    def cumulative(self, output: Tensor, levels: Tensor, channels: slice) -> Cumulative:
        return self.kind.cumulative_values(output[:, channels], self._scale_like(output)[:, channels])

    def mean(self, output: Tensor) -> Tensor:
        return self.spec.nearest_cell(output)

    def sample(self, output: Tensor, noise: Noise) -> Tensor:
        return self.kind.sample_values(output, self._scale_like(output), noise)

    def sums(self, output: Tensor, levels: Tensor) -> Tensor:
        """float64 [len(GRID) * C] nats: -log p of all values of a channel at each log-scale of GRID."""
        costs = [
            -self.kind.log_prob_values(output, torch.full_like(output, log_scale), levels).double().sum((0, 2, 3))
            for log_scale in GRID.tolist()
        ]
        return torch.stack(costs).flatten()

    def fit(self, sums: Tensor) -> None:
        """Take the log-scale with the least cost for each channel; `sums` are added up over images."""
        costs = sums.cpu().reshape(len(GRID), -1)
        least = costs.argmin(0).clamp(1, len(GRID) - 2)
        before, here, after = (costs.gather(0, (least + shift)[None])[0] for shift in (-1, 0, 1))
        shift = 0.5 * (before - after) / (before - 2 * here + after)
        best = GRID[least] + STEP * shift.clamp(-1, 1)
        self.log_scale.copy_(best.reshape(self.log_scale.shape))

    def _scale_like(self, output: Tensor) -> Tensor:
        return self.log_scale.to(output.dtype).expand_as(output)
