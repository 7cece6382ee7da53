"""The ladder: a pass up over the image, and one walk down that prior and posterior share.

q(z | x) = prod_t q(z_t | z_>t, x) and p(z) = prod_t p(z_t | z_>t), z_T the top: equation 3 of the source text with
both chains running down (Sonderby et al. 2016, ladder VAE; Vahdat and Kautz 2020, NVAE; Child 2021, VDVAE).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from annotated_types import Len
from pydantic import model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.condition_values import Condition
from trainer.config import Config
from trainer.elbo import Elbo
from trainer.images import ImageSpec
from trainer.likelihoods import LikelihoodConfig
from trainer.likelihoods.discretised import DiscretisedLogisticConfig
from trainer.models.conditioned import GivenVector
from trainer.models.decoding import Decode, DecodeOptions, decoded
from trainer.models.hierarchy import Hierarchy, held
from trainer.models.ladder.config import StageConfig
from trainer.models.ladder.group import Draw, Group
from trainer.models.ladder.stages import Side, StageDown, StageUp
from trainer.models.rates import WeightedRates, balance
from trainer.networks.cells import CellsConfig
from trainer.networks.cells.mlp import MlpCells
from trainer.noise import Noise

Features = list[Tensor | None]  # of the image, for every stage from the top down


class LadderConfig(WeightedRates):
    """A pass up over the image, and one walk down that draws each group of latents given all above it."""

    SamplingOptions: ClassVar[type[Config]] = DecodeOptions

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
        """The stages from the image up, repetitions unrolled."""
        stages = []
        for stage in self.stages:
            stages += [stage] + [stage.model_copy(update={"shrink": 1})] * (stage.repeat - 1)
        return stages

    def build(self, spec: ImageSpec) -> Ladder:
        return Ladder(self, spec)


class Ladder(Hierarchy):
    """p(x | z_1 .. z_T) is computed from the features at the end of the walk down."""

    def __init__(self, config: LadderConfig, spec: ImageSpec):
        super().__init__()
        self.spec, self.config, self.given = spec, config, GivenVector(config, spec)
        self.likelihood = config.likelihood.build(spec)
        self.is_density = self.likelihood.is_density
        placed = _placed(config, spec)
        cells, first, last = config.cells, placed[0][0].width, placed[-1][0].width

        depth = max(1, sum(stage.cells_up for stage, _ in placed))
        self.stem, self.up, before = cells.stem(spec, first), nn.ModuleList(), first
        for stage, side in placed:
            self.up.append(StageUp(cells, stage, before, side, depth, self.given.width))
            before = stage.width

        depth = max(1, sum(max(1, stage.groups) * stage.cells_down for stage, _ in placed))
        self.top = nn.Parameter(0.02 * torch.randn(last, *(placed[-1][1] if cells.maps else ())))
        self.down, above, standard = nn.ModuleList(), last, config.top_prior == "standard"
        for stage, side in reversed(placed):
            self.down.append(StageDown(cells, stage, above, side, depth, standard, self.given.width))
            above, standard = stage.width, False
        self.output = cells.output(spec, first, self.likelihood.outputs)

        # Shapes of the latents of levels 1 .. T
        self.shapes = [
            (stage.latent, *side) if cells.maps else (stage.latent,)
            for stage, side in placed
            for _ in range(stage.groups)
        ]
        self.levels = len(self.shapes)

    def forward(self, images: Tensor, condition: Condition, noise: Noise, progress: Tensor) -> Elbo:
        given = self.given(condition, noise)
        output, draws = self.walk(self._eps(noise), noise, given, self.encode(images, noise, given))
        distortion = -self.likelihood.log_prob(output, images)  # [B]
        rates = {}  # [B] each: KL(q(z_t | z_>t, x) || p(z_t | z_>t)), closed given the draw above
        for level, (_, p, q) in enumerate(reversed(draws), start=1):
            assert q is not None
            rates[f"z{level}"] = q.kl(p)
        return Elbo(distortion, rates, self._objective(distortion, rates, progress))

    def encode(self, images: Tensor, noise: Noise, given: Tensor | None = None) -> Features:
        """The pass up: the features of every stage, from the top down."""
        h = self.stem(self.spec.scaled(images, noise.dtype))
        features: Features = []
        for stage in self.up:
            h = stage(h, self._run, given)
            features.insert(0, h)
        return features

    def walk(
        self,
        eps: Callable[[int], Tensor],
        noise: Noise,
        given: Tensor | None = None,
        features: Features | None = None,
        informed: int | None = None,
    ) -> tuple[Tensor, list[Draw]]:
        """The walk down: the parameters of p(x | z) and the draws of z_T .. z_1.

        Levels come from the prior; with `features` of images the upper `informed` (all if None) from the posterior.
        eps(level) ~ N(0, I) of the level's shape. `given`: the vector of the conditions.
        """
        draws: list[Draw] = []

        def drawn(group: Group, h: Tensor, seen: Tensor | None) -> Tensor:
            visible = seen if informed is None or len(draws) < informed else None
            h, draw = self._run(group, h, eps(self.levels - len(draws)), visible)
            draws.append(draw)
            return h

        return self.descend(len(noise.positions), given, features, drawn).to(noise.dtype), draws

    def descend(
        self,
        rows: int,
        given: Tensor | None,
        features: Features | None,
        latents: Callable[[Group, Tensor, Tensor | None], Tensor],
    ) -> Tensor:
        """The walk down with any latents: `latents(group, h, features of the image)` gives the features below a group.

        Returns the output of `rows` images, in the type of the network.
        """
        h = self.top.expand(rows, *self.top.shape)
        stages = cast(list[StageDown], self.down)
        for stage, seen in zip(stages, features or [None] * len(self.down), strict=True):
            h = stage.enter(h, given)
            for group in cast(list[Group], stage.groups):
                h = latents(group, h, seen)
            for cell in stage.cells:
                h = self._run(cell, h)
        return self.output(h)

    def enter_top(self, rows: int) -> tuple[Group, Tensor]:
        """The topmost group, and the features above it, for `rows` images without conditions."""
        stage = cast(StageDown, self.down[0])
        return cast(Group, stage.groups[0]), stage.enter(self.top.expand(rows, *self.top.shape))

    def sample(
        self,
        noise: Noise,
        condition: Condition = None,
        temperature: float = 1.0,
        shared_levels: int = 0,
        decode: Decode = "sample",
    ) -> Tensor:
        def eps(level: int) -> Tensor:
            return temperature * self._eps(held(noise, self.levels - level < shared_levels))(level)

        return decoded(self.likelihood, self.walk(eps, noise, self.given(condition, noise))[0], noise, decode)

    def reconstruct(self, images: Tensor, condition: Condition, noise: Noise, levels: int | None = None) -> Tensor:
        draw = self._eps(noise)

        def eps(level: int) -> Tensor:
            return draw(level) if levels is None or self.levels - level < levels else 0 * draw(level)

        given = self.given(condition, noise)
        return self.likelihood.mean(self.walk(eps, noise, given, self.encode(images, noise, given), levels)[0])

    def log_weights(self, images: Tensor, condition: Condition, noise: Noise, k: int) -> Tensor:
        given = self.given(condition, noise)
        features, weights = self.encode(images, noise, given), []
        for draw in range(k):
            output, draws = self.walk(self._eps(noise.with_draw(draw, k)), noise, given, features)
            weight = self.likelihood.log_prob(output, images)
            for z, p, q in draws:
                assert q is not None
                weight = weight + p.log_prob(z) - q.log_prob(z)
            weights.append(weight)
        return torch.stack(weights, dim=1)

    def _objective(self, distortion: Tensor, rates: dict[str, Tensor], progress: Tensor) -> Tensor | None:
        if not self.config.balance:
            return self.config.objective(distortion, rates, progress)
        spent = torch.stack(list(rates.values()), dim=1)  # [B, T]
        warmth = self.config.warmth(progress, spent)
        weights = torch.where(
            progress < self.config.kl_warmup, balance(spent, [math.prod(shape) for shape in self.shapes]), 1.0
        )
        return distortion + warmth * (weights * self.config.charged(spent)).sum(dim=1)

    def _eps(self, noise: Noise) -> Callable[[int], Tensor]:
        return lambda level: noise.normal(f"z{level}", self.shapes[level - 1])

    def _run(self, part: nn.Module, *inputs: Any) -> Any:
        if self.config.checkpoint_gradients and torch.is_grad_enabled():
            return checkpoint(part, *inputs, use_reentrant=False, preserve_rng_state=False)
        return part(*inputs)


def _placed(config: LadderConfig, spec: ImageSpec) -> list[tuple[StageConfig, Side]]:
    """The stages from the image up, repetitions unrolled, with the sides of their maps."""
    placed, side = [], (spec.height, spec.width) if config.cells.maps else (1, 1)
    for stage in config.unrolled():
        side = (-(-side[0] // stage.shrink), -(-side[1] // stage.shrink))
        placed.append((stage, side))
    return placed
