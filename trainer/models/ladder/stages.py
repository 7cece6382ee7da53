"""The stages of both passes: where resolution and width change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from trainer.models.conditioned import GivenShift
from trainer.models.ladder.config import StageConfig
from trainer.models.ladder.group import Group
from trainer.networks.cells import Cells
from trainer.networks.unit import Unit

Side = tuple[int, int]  # (height, width) of maps; (1, 1) for vectors
Run = Callable[..., Any]  # run(part, *inputs): part(*inputs), perhaps to be computed again in the backward pass


class StageUp(Unit):
    """From the features of the stage before, towards the image, to those of this one."""

    def __init__(self, cells: Cells, stage: StageConfig, before: int, side: Side, depth: int, given: int = 0):
        """`given`: width of the vector of the conditions."""
        super().__init__()
        self.shrink = stage.shrink
        self.widen = cells.project(before, stage.width) if before != stage.width else nn.Identity()
        self.informed = GivenShift(given, stage.width)
        self.cells = nn.ModuleList(cells.bottom_up(stage.width, min(side), depth) for _ in range(stage.cells_up))

    def forward(self, h: Tensor, run: Run, given: Tensor | None = None) -> Tensor:
        """[B, before, ...] to [B, width, ...] at this stage's resolution."""
        h = self.widen(F.avg_pool2d(h, self.shrink, ceil_mode=True) if self.shrink > 1 else h)
        h = self.informed(h, given)
        for cell in self.cells:
            h = run(cell, h)
        return h


class StageDown(nn.Module):
    """From the features of the stage above to those of this one; then `groups`, then `cells`."""

    def __init__(
        self, cells: Cells, stage: StageConfig, above: int, side: Side, depth: int, standard: bool, given: int = 0
    ):
        super().__init__()
        self.side = side
        self.narrow = cells.project(above, stage.width) if above != stage.width else nn.Identity()
        self.informed = GivenShift(given, stage.width)
        groups = [Group(cells, stage, min(side), depth, standard and i == 0) for i in range(stage.groups)]
        self.groups = nn.ModuleList(groups)
        alone = 0 if stage.groups else stage.cells_down
        self.cells = nn.ModuleList(cells.top_down(stage.width, min(side), depth) for _ in range(alone))

    def enter(self, h: Tensor, given: Tensor | None = None) -> Tensor:
        """[B, above, ...] to [B, width, ...] at this stage's resolution."""
        h = self.informed(self.narrow(h), given)
        return F.interpolate(h, size=self.side, mode="nearest") if h.dim() == 4 and h.shape[2:] != self.side else h
