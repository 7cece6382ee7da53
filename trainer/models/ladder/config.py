"""The configuration of a ladder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Len
from pydantic import NonNegativeInt, PositiveInt, model_validator

from trainer.config import Config
from trainer.images import ImageSpec
from trainer.likelihoods import LikelihoodConfig
from trainer.likelihoods.discretised import DiscretisedLogisticConfig
from trainer.models.rates import WeightedRates
from trainer.networks.cells import CellsConfig
from trainer.networks.cells.mlp import MlpCells

if TYPE_CHECKING:
    from trainer.models.ladder.model import Ladder


class StageConfig(Config):
    """Groups of latents at one resolution, that read the features of one place in the pass from the image up."""

    shrink: PositiveInt = 1
    """Reduction factor of height and width relative to the stage before (to the image, for the first), rounding up."""
    width: PositiveInt
    """Channels of the features in both passes."""
    cells_up: NonNegativeInt = 1
    """Residual cells in the pass up from the image."""
    groups: NonNegativeInt = 1
    """Groups of latents, one after another in the pass down; 0 for a stage without latents."""
    latent: PositiveInt = 16
    """Channels (or dimensions) of each group of latents."""
    cells_down: NonNegativeInt = 1
    """Residual cells in the pass down after each group; in a stage without groups, in all."""
    repeat: PositiveInt = 1
    """Repeat this stage N times; only the first downsamples."""


class LadderConfig(WeightedRates):
    """A pass up over the image, and one walk down that draws each group of latents given all above it."""

    kind: Literal["ladder"]
    cells: CellsConfig = MlpCells()
    """Building blocks of both passes. MLP cells make groups of vectors, the others groups of feature maps."""
    stages: Annotated[tuple[StageConfig, ...], Len(1)] = (StageConfig(width=256),) * 5
    """Stages, from the image up."""
    top_prior: Literal["learned", "standard"] = "learned"
    """p(z_T): a normal distribution with learned parameters, or N(0, I)."""
    likelihood: LikelihoodConfig = DiscretisedLogisticConfig()
    """Distribution of the pixels given the decoder's output."""
    balance: bool = False
    """During the KL warm-up, weight the levels so that each latent dimension costs alike."""
    checkpoint_gradients: bool = False
    """Recompute the features of a cell or group in the backward pass instead of keeping them (less memory, more
    time)."""

    @model_validator(mode="after")
    def _consistent(self) -> LadderConfig:
        if not self.stages[-1].groups:
            raise ValueError("stages: the last, at the top, has no groups of latents (groups: 1 or more)")
        if self.stages[0].shrink > 1:
            raise ValueError("stages: the first has the image's own resolution (shrink: 1; groups may be 0)")
        if not self.cells.maps and any(stage.shrink > 1 for stage in self.stages):
            raise ValueError("stages: shrink is for maps; with mlp cells every stage has shrink: 1")
        if self.balance and not self.kl_warmup:
            raise ValueError("balance: acts while the rates warm up; give kl_warmup (images) as well")
        return self

    def unrolled(self) -> list[StageConfig]:
        """The stages from the image up, each repetition by itself."""
        stages = []
        for stage in self.stages:
            stages += [stage] + [stage.model_copy(update={"shrink": 1})] * (stage.repeat - 1)
        return stages

    def build(self, spec: ImageSpec) -> Ladder:
        from trainer.models.ladder.model import Ladder

        return Ladder(self, spec)
