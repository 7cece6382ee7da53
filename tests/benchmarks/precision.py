"""What bfloat16 costs the bound: the same weights evaluated in float32 and under autocast.

    python -m tests.benchmarks.precision [--steps 600] [--seeds 3] [--only unet,eps]

Every family, and a diffusion with each network and prediction, is trained in float32 on waves of 8x8 pixels in three
colours with 256 levels; then the bound of 256 held-out images is computed twice with the same noise, 4 draws an image.
The columns: bits per dimension in float32; how much more under bfloat16; the same for the training objective, in
percent of it. Means over the seeds, and the standard error of the difference over the images.
The results on record are in docs/numerics.md.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from tests.trainer.models import COLOUR, batch
from trainer.elbo import bits_per_dimension
from trainer.models import Model, ModelConfig
from trainer.noise import Noise
from trainer.training.optimizer import OptimConfig, adamw, learning_rate

BATCH, HELD_OUT, DRAWS = 32, 256, 4
_CONV = {"kind": "conv", "channels": [16, 24], "hidden": 64}
_RESNET = {"kind": "resnet", "channels": [16, 24], "blocks": 1, "hidden": 64}
_MLP = {"kind": "mlp", "hidden": [128]}
_MAPS = [{"width": 16, "latent": 4}, {"shrink": 2, "width": 24, "groups": 2, "latent": 4}]
_NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": {"kind": "mlp", "width": 256, "depth": 2},
    "unet": {"kind": "unet", "channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": [4], "dropout": 0},
    "vdm_unet": {"kind": "vdm_unet", "channels": 16, "depth": 2, "dropout": 0},
    "dit": {"kind": "dit", "width": 64, "depth": 2, "heads": 2},
}


def diffusion(network: str, prediction: str, fourier: tuple[int, ...] = (), **more: Any) -> dict[str, Any]:
    denoiser = {"network": _NETWORKS[network], "prediction": {"kind": prediction}, "fourier": fourier, "embedding": 32}
    return {"kind": "diffusion", "denoiser": denoiser} | more


CASES: dict[str, dict[str, Any]] = {
    "vae conv": {"kind": "vae", "latent": 16, "encoder": _CONV, "decoder": _CONV},
    "vae resnet, mixture": {
        "kind": "vae",
        "latent": 16,
        "encoder": _RESNET,
        "decoder": _RESNET,
        "likelihood": {"kind": "logistic_mixture", "components": 3},
    },
    "hvae": {"kind": "hvae", "latents": [16, 8], "encoder": _MLP, "decoder": _MLP, "hidden": [64]},
    "ladder mlp": {"kind": "ladder", "stages": [{"width": 128, "latent": 8, "repeat": 3}]},
    "ladder nvae": {"kind": "ladder", "cells": {"kind": "nvae", "expansion": 2}, "stages": _MAPS},
    "ladder vdvae": {"kind": "ladder", "cells": {"kind": "vdvae"}, "stages": _MAPS},
    **{
        f"diffusion {network} {prediction}": diffusion(network, prediction)
        for network in _NETWORKS
        for prediction in ("levels", "mixture", "eps", "x0", "v")
    },
    "diffusion unet eps, fourier 7 8": diffusion("unet", "eps", (7, 8)),
    "diffusion vdm_unet eps, fourier 7 8": diffusion("vdm_unet", "eps", (7, 8)),
    "diffusion unet eps, simple": diffusion("unet", "eps", weighting={"kind": "simple"}),
    "diffusion unet v, sigmoid": diffusion("unet", "v", weighting={"kind": "sigmoid"}),
    "diffusion unet x0, edm": diffusion("unet", "x0", weighting={"kind": "edm"}),
}


def trained(config: dict[str, Any], steps: int, seed: int) -> Model:
    """A model after so many steps of float32."""
    torch.manual_seed(seed)
    model: Model = TypeAdapter(ModelConfig).validate_python(config).build(COLOUR)
    optim = OptimConfig(lr=2e-3, warmup=20 * BATCH)
    optimizer = adamw(model, optim)
    images = batch(COLOUR, 64 * BATCH, seed=seed)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate(optim, (step + 1) * BATCH, (steps + 1) * BATCH)
        noise = Noise(seed, "train", torch.arange(step * BATCH, (step + 1) * BATCH), BATCH)
        some = images[(torch.arange(BATCH) + step * BATCH) % len(images)]
        loss = model(some, None, noise, torch.tensor(float(step * BATCH))).loss.mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1000.0)
        optimizer.step()
    return model


@torch.no_grad()
def costs(model: Model, seed: int, bf16: bool) -> tuple[Tensor, Tensor]:
    """Per held-out image [HELD_OUT], nats: the bound, and the training objective of the same images."""
    images = batch(COLOUR, HELD_OUT, seed=1000 + seed)
    progress = torch.tensor(1e9)
    evaluated = Noise(seed, "evaluate", torch.arange(HELD_OUT))
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        bounds = [model(images, None, evaluated.with_draw(d, DRAWS), progress).negative_bound for d in range(DRAWS)]
        trained_on = Noise(seed, "train", torch.arange(HELD_OUT), HELD_OUT)
        objective = model(images, None, trained_on, progress).loss
    return torch.stack(bounds).double().mean(0), objective.double()


def compared(config: dict[str, Any], steps: int, seeds: int) -> tuple[float, float, float, float]:
    """Bits per dimension in float32, what bfloat16 adds, the standard error of that; its share of the objective, %."""
    fp32, added, errors, shares = [], [], [], []
    for seed in range(seeds):
        model = trained(config, steps, seed)
        (full, objective), (half, half_objective) = costs(model, seed, False), costs(model, seed, True)
        fp32.append(full.mean().item())
        added.append((half - full).mean().item())
        errors.append((half - full).std().item() / math.sqrt(HELD_OUT))
        shares.append(100 * ((half_objective - objective).mean() / objective.mean()).item())
    means = [sum(column) / seeds for column in (fp32, added, errors)]
    bits = [bits_per_dimension(mean, COLOUR.dimensions) for mean in means]
    return bits[0], bits[1], bits[2] / math.sqrt(seeds), sum(shares) / seeds


def rows(steps: int, seeds: int, only: list[str]) -> Iterator[str]:
    """The table in Markdown, a line at a time."""
    yield "| model | fp32, bpd | bf16 adds, bpd | to the objective |"
    yield "|---|---|---|---|"
    for name, config in CASES.items():
        if all(part in name.replace(",", "").split() for part in only):
            fp32, added, error, share = compared(config, steps, seeds)
            yield f"| {name} | {fp32:.4f} | {added:+.5f} ± {error:.5f} | {share:+.3f}% |"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.precision", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--steps", type=int, default=600, help="of training, 32 images each")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="parts of the names of the cases, separated by commas")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for row in rows(options.steps, options.seeds, [part for part in options.only.split(",") if part]):
        print(row, flush=True)


if __name__ == "__main__":
    main()
