"""One small configuration of every kind of model, and a small batch, for tests that hold for all."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from trainer.images import ImageSpec
from trainer.models import Model, ModelConfig
from trainer.noise import Noise

GREY = ImageSpec(1, 8, 8, 17)
BINARY = ImageSpec(1, 8, 8, 2)
COLOUR = ImageSpec(3, 8, 8, 256)

_MLP = {"kind": "mlp", "hidden": [32]}
_MAPS = [{"width": 8, "latent": 2}, {"shrink": 2, "width": 12, "groups": 2, "latent": 2}, {"shrink": 4, "width": 12}]

# name: (images, configuration)
ALL_MODELS: dict[str, tuple[ImageSpec, dict[str, Any]]] = {
    "vae-mlp": (GREY, {"kind": "vae", "latent": 8, "encoder": _MLP, "decoder": _MLP}),
    "vae-conv": (
        BINARY,
        {
            "kind": "vae",
            "latent": 8,
            "encoder": {"kind": "conv", "channels": [8, 12], "hidden": 32},
            "decoder": {"kind": "conv", "channels": [8, 12], "hidden": 32},
            "likelihood": {"kind": "bernoulli"},
        },
    ),
    "vae-resnet": (
        COLOUR,
        {
            "kind": "vae",
            "latent": 16,
            "encoder": {"kind": "resnet", "channels": [8, 12], "blocks": 1, "hidden": 32},
            "decoder": {"kind": "resnet", "channels": [8, 12], "blocks": 1, "hidden": 32},
            "likelihood": {"kind": "logistic_mixture", "components": 2},
        },
    ),
    "vae-maps": (
        COLOUR,
        {
            "kind": "vae",
            "latent": {"channels": 3, "downsample": 4},
            "encoder": {"kind": "resnet", "channels": [4, 8, 12], "blocks": 1, "attention": 2},
            "decoder": {"kind": "resnet", "channels": [4, 8, 12], "blocks": 1, "attention": 2},
            "beta": 0.5,
        },
    ),
    "hvae": (
        GREY,
        {"kind": "hvae", "latents": [8, 6, 4], "encoder": _MLP, "decoder": _MLP, "hidden": [16], "kl_warmup": 200},
    ),
    "ladder-mlp": (
        BINARY,
        {"kind": "ladder", "stages": [{"width": 32, "latent": 4, "repeat": 3}], "likelihood": {"kind": "bernoulli"}},
    ),
    "ladder-nvae": (
        GREY,
        {
            "kind": "ladder",
            "cells": {"kind": "nvae", "expansion": 2},
            "stages": _MAPS,
            "top_prior": "standard",
            "kl_warmup": 200,
            "balance": True,
        },
    ),
    "ladder-vdvae": (
        COLOUR,
        {
            "kind": "ladder",
            "cells": {"kind": "vdvae"},
            "stages": _MAPS,
            "likelihood": {"kind": "logistic_mixture", "components": 2},
            "free_bits": 0.05,
            "checkpoint_gradients": True,
        },
    ),
    "diffusion": (
        GREY,
        {
            "kind": "diffusion",
            "denoiser": {"network": {"kind": "mlp", "width": 32, "depth": 1}},
            "sampling": {"steps": 4},
        },
    ),
    "diffusion-unet": (
        COLOUR,
        {
            "kind": "diffusion",
            "schedule": {"kind": "learned", "pieces": 8},
            "steps": 5,
            "denoiser": {
                "network": {"kind": "unet", "channels": 4, "multipliers": [1, 2], "blocks": 1, "attention": [4]},
                "prediction": {"kind": "mixture", "components": 2},
                "fourier": [7],
                "embedding": 16,
            },
            "sampling": {"sampler": "heun", "steps": 3, "spacing": "karras"},
        },
    ),
    "diffusion-dit": (
        BINARY,
        {
            "kind": "diffusion",
            "schedule": {"kind": "cosine", "gamma_0": -5},
            "weighting": {"kind": "sigmoid"},
            "denoiser": {
                "network": {"kind": "dit", "width": 16, "depth": 1, "heads": 2},
                "prediction": {"kind": "v"},
                "embedding": 16,
            },
            "sampling": {"sampler": "dpm_solver", "steps": 4, "spacing": "log_snr"},
        },
    ),
}


def build(name: str, seed: int = 0) -> Model:
    """The model `name` of ALL_MODELS with the weights of `seed`."""
    spec, config = ALL_MODELS[name]
    torch.manual_seed(seed)
    return TypeAdapter(ModelConfig).validate_python(config).build(spec)


def batch(spec: ImageSpec, n: int = 8, seed: int = 0) -> Tensor:
    """Images with something to learn, uint8 [n, C, H, W]: slanted waves of several lengths and phases."""
    wave = torch.rand(n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    y, x = torch.meshgrid(torch.arange(spec.height), torch.arange(spec.width), indexing="ij")
    colour = torch.arange(spec.channels)[:, None, None]
    angle = 6 * wave[:, 0, None, None, None] + (wave[:, 1, None, None, None] * x + wave[:, 2, None, None, None] * y)
    value = 0.5 + 0.5 * torch.sin(angle + colour * wave[:, 3, None, None, None])
    return (value * (spec.levels - 1)).round().to(torch.uint8)


def training_noise(n: int = 8, first: int = 0, dtype: torch.dtype = torch.float32) -> Noise:
    """The noise of the step that takes the positions [first, first + n)."""
    return Noise(0, "train", torch.arange(first, first + n), batch=n, dtype=dtype)
