"""AdamW, its learning rate as a function of the images seen, and its state by the parameters' names."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from trainer.config import Config
from trainer.distributed.sharding import placed_like


class OptimConfig(Config):
    """The optimiser; everything is counted in images, so that nothing changes with the number of ranks."""

    lr: PositiveFloat = 1e-3
    """Highest learning rate. May change on resume."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up: down a half cosine to `final_lr` at the end of the image budget, or constant."""
    final_lr: NonNegativeFloat = 0.01
    """Where the cosine ends, as a share of `lr`."""
    warmup: NonNegativeInt = 0
    """Images over which the learning rate rises from zero."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled (Loshchilov and Hutter 2019); on matrices and kernels only."""
    clip: PositiveFloat = 1000.0
    """Norm to which larger gradients are scaled down; of the mean objective in nats an image."""
    ema: PositiveInt = 20_000
    """Half-life of the averaged weights, in images."""
    posthoc: NonNegativeInt = 0
    """Images between snapshots of two more averages (half precision, in `averages/` of the run), of which one of any
    width is made afterwards (`--weights posthoc:0.08`; Karras et al. 2024, EDM2); 0: none."""


def learning_rate(config: OptimConfig, images: int, budget: int) -> float:
    """The learning rate of the step that begins after `images` of `budget` images."""
    if images < config.warmup:
        return config.lr * images / config.warmup
    if config.schedule == "constant":
        return config.lr
    share = min((images - config.warmup) / max(budget - config.warmup, 1), 1.0)
    return config.lr * (config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * share)))


def adamw(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW, fused: one kernel on GPU, and a step that can be called off on the device (`found_inf`)."""
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimiser's tensors as "<parameter>.<what>"; what has not been stepped yet has none."""
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module, state: dict[str, Tensor]) -> None:
    """Take over a copy of what `optimizer_state` gave."""
    for name, parameter in model.named_parameters():
        mine = {key: state[f"{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{name}.{key}" in state}
        if mine:
            optimizer.state[parameter] = {
                key: value.to(parameter.device, copy=True) if key == "step" else placed_like(parameter, value)
                for key, value in mine.items()
            }
