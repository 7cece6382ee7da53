"""Conditions of the autoencoders and hierarchies: one vector an image, for posterior, prior and decoder."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Annotated, ClassVar, Self

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from trainer.condition_values import Condition, hidden
from trainer.images import ImageSpec
from trainer.models.base import Model, ModelConfigBase
from trainer.networks.conditioning import ConditionConfig, ConditionEmbedding, contained, rebuilt_as
from trainer.networks.mlp import mlp
from trainer.networks.residual import zeroed
from trainer.noise import Noise
from trainer.normal import Normal, bounded

Probability = Annotated[float, Field(ge=0, le=1)]
Dropout = Probability | dict[str, Probability]

WIDEST_PRIOR = 1.0
"""Largest log-scale of a prior given conditions, and smallest but for its sign."""


class ConditionedConfig(ModelConfigBase):
    """The part of a model's configuration that says what it is conditioned on."""

    CONDITIONS: ClassVar[str] = "conditions"

    conditions: dict[str, ConditionConfig] = {}
    """What the model is conditioned on, by the names of `data.conditions`: `caption: {kind: text}`."""
    embedding: PositiveInt = 128
    """Width of the conditions' vector."""
    condition_dropout: Dropout = 0.0
    """Probability that a training image's conditions are hidden, for unconditional samples: of all together, or of each
    by name."""

    def rebuild(self, spec: ImageSpec, recorded: ModelConfigBase | None) -> Model | None:
        if not isinstance(recorded, ConditionedConfig):
            return self.build(spec)
        return self.model_copy(update={"conditions": rebuilt_as(self.conditions, recorded.conditions)}).build(spec)

    def self_contained(self, model: Model) -> Self:
        assert isinstance(model, ConditionedModel)
        return self.model_copy(update={"conditions": contained(self.conditions, model.given.conditions)})


class GivenVector(nn.Module):
    """The conditions of a batch as vectors [B, width]; None, and no weights, for a model without conditions."""

    def __init__(self, config: ConditionedConfig, spec: ImageSpec):
        super().__init__()
        self.width = config.embedding if config.conditions else 0
        self.dropout = config.condition_dropout
        self.conditions = ConditionEmbedding(config.conditions, config.embedding, spec)

    def forward(self, condition: Condition, noise: Noise) -> Tensor | None:
        if noise.purpose == "train":
            condition = dropped(condition, noise, self.dropout)
        return self.conditions(condition, noise).vector


class ConditionedModel(Model):
    """A model with a `GivenVector`."""

    given: GivenVector

    @property
    def conditions(self) -> Collection[str]:
        return self.given.conditions.keys()

    @property
    def hidden_in_training(self) -> Mapping[str, float]:
        return shares(self.given.dropout, self.conditions)


class GivenPrior(nn.Module):
    """p(z | c) of z [B, *shape]: a normal distribution of the vector c [B, inputs], N(0, I) at the start."""

    def __init__(self, inputs: int, shape: tuple[int, ...]):
        super().__init__()
        self.head = mlp([inputs, inputs, 2 * math.prod(shape)], "silu") if inputs else None
        if self.head is not None:
            zeroed(self.head[-1])

    def forward(self, given: Tensor | None, like: Tensor) -> Normal:
        """Without conditions N(0, I) of the shape and type of `like`."""
        if self.head is None or given is None:
            return Normal.standard(like)
        mean, log_scale = self.head(given).to(like.dtype).chunk(2, dim=1)
        return Normal(mean.reshape(like.shape), bounded(log_scale, WIDEST_PRIOR).reshape(like.shape))


class GivenResidual(nn.Module):
    """h + f(h, c) for vectors h [B, size] and c [B, inputs]; the identity at the start, and without conditions."""

    def __init__(self, inputs: int, size: int):
        super().__init__()
        self.residual = mlp([inputs + size, 2 * inputs, size], "silu") if inputs else None
        if self.residual is not None:
            zeroed(self.residual[-1])

    def forward(self, h: Tensor, given: Tensor | None) -> Tensor:
        if self.residual is None or given is None:
            return h
        return h + self.residual(torch.cat([h, given.to(h.dtype)], 1))


class GivenShift(nn.Module):
    """h + W c for features h, [B, size] or maps [B, size, H, W]; the identity at the start, and without conditions."""

    def __init__(self, inputs: int, size: int):
        super().__init__()
        self.shift = zeroed(nn.Linear(inputs, size)) if inputs else None

    def forward(self, h: Tensor, given: Tensor | None) -> Tensor:
        if self.shift is None or given is None:
            return h
        shift = self.shift(given)
        return h + shift.reshape(*shift.shape, *[1] * (h.dim() - 2)).to(h.dtype)


def beside(z: Tensor, given: Tensor | None) -> Tensor:
    """Latents [B, size] or [B, size, h, w] and the conditions' vector, if any, as one input."""
    if given is None:
        return z
    vector = given.to(z.dtype).reshape(*given.shape, *[1] * (z.dim() - 2))
    return torch.cat([z, vector.expand(*given.shape, *z.shape[2:])], 1)


def dropped(condition: Condition, noise: Noise, dropout: float | Mapping[str, float]) -> Condition:
    """`condition` with values replaced by unknown at random (Ho and Salimans 2022, arXiv 2207.12598).

    `dropout`: the probability that all conditions of an image are hidden together, or one for each condition by name.
    """
    if condition is None or not dropout:
        return condition
    if isinstance(dropout, float | int):
        where = noise.uniform("condition") < dropout
        return {name: hidden(value, where) for name, value in condition.items()}
    return {
        name: hidden(value, noise.uniform(f"condition/{name}") < dropout.get(name, 0.0))
        for name, value in condition.items()
    }


def shares(dropout: float | Mapping[str, float], names: Collection[str]) -> dict[str, float]:
    """The probability with which each condition is hidden."""
    if isinstance(dropout, Mapping):
        return dict.fromkeys(names, 0.0) | dict(dropout)
    return dict.fromkeys(names, dropout)
