"""AdamW, its learning rate as a function of images seen, and its state by parameter name."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from trainer.config import Config, MayChange


class OptimConfig(Config):
    """AdamW and the averages of the weights. Everything is counted in images: independent of the number of ranks."""

    lr: Annotated[PositiveFloat, MayChange] = 1e-3
    """Peak learning rate."""
    schedule: Literal["cosine", "constant", "wsd"] = "cosine"
    """After the warm-up. cosine: half a cosine down to `final_lr` at the end of `trainer.images`. constant. wsd:
    constant, then linearly down to `final_lr` over the last part of the budget (warmup-stable-decay, Hu et al. 2024,
    arXiv 2404.06395)."""
    decay: Annotated[float, Field(gt=0, le=1), MayChange] = 0.2
    """With schedule: wsd, the share of `trainer.images` over which the learning rate falls."""
    final_lr: NonNegativeFloat = 0.01
    """Learning rate at the end of a cosine or decay, as a fraction of `lr`."""
    warmup: NonNegativeInt = 0
    """Images over which the learning rate rises linearly from zero."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's two moments, per step."""
    eps: PositiveFloat = 1e-8
    """AdamW's epsilon, added to the denominator."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay (Loshchilov and Hutter 2019), of matrices and convolution kernels only."""
    clip: Annotated[PositiveFloat | None, MayChange] = None
    """Maximum gradient norm; the gradient is that of the mean objective, in nats per image, so that its norm grows with
    the number of pixels. null: no clipping (`trainer.guard` skips steps of exploding gradients)."""
    ema: PositiveInt = 20_000
    """Half-life of the exponential moving average of the weights, in images."""
    posthoc: Annotated[NonNegativeInt, MayChange] = 0
    """Images between snapshots of two more averages (half precision, in <run>/averages/), from which an average of any
    width can be computed afterwards (`--weights posthoc:0.08`; Karras et al. 2024, EDM2). 0: none."""


def learning_rate(config: OptimConfig, images: int, budget: int) -> float:
    """The learning rate of the step that begins after `images` of `budget` images."""
    if images < config.warmup:
        return config.lr * images / config.warmup
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "wsd":
        left = max(budget - images, 0) / max(config.decay * budget, 1)  # of the decay
        return config.lr * (config.final_lr + (1 - config.final_lr) * min(left, 1.0))
    share = min((images - config.warmup) / max(budget - config.warmup, 1), 1.0)
    return config.lr * (config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * share)))


def learning_rate_rise(config: OptimConfig, images: int, budget_before: int, budget: int) -> str | None:
    """A line for the user if a larger budget (images) raises the learning rate after `images` images."""
    before, now = learning_rate(config, images, budget_before), learning_rate(config, images, budget)
    if now <= 1.01 * before:
        return None
    what = "decay" if config.schedule == "wsd" else "cosine"
    return (
        f"the learning rate rises from {before:.3g} to {now:.3g}: its {what} now ends after {budget:,} images, "
        f"not {budget_before:,}"
    )


def adamw(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW: one kernel on GPU, and steps that can be skipped on the device (`found_inf`)."""
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's tensors as "<parameter>.<name>"; parameters that were never stepped have none."""
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def allocated_optimizer_state(
    optimizer: torch.optim.Optimizer, model: nn.Module, names: Collection[str]
) -> dict[str, Tensor]:
    """Tensors of the optimizer under these names, which are those of an `optimizer_state`, to be filled in place.

    Moments get the strides and the sharding of their parameters. The fused kernels pair their elements in memory order:
    CUDA's raises if strides differ, the CPU's pairs the wrong elements.
    """
    optimizer.state.clear()
    for name, parameter in model.named_parameters():
        if f"{name}.step" in names:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.empty_like(parameter, requires_grad=False),
                "exp_avg_sq": torch.empty_like(parameter, requires_grad=False),
            }
    return optimizer_state(optimizer, model)
