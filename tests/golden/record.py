"""Twenty steps of every model: the curve of its loss. `python -m tests.golden.record` writes the curves anew.

Write them anew only when the mathematics is meant to change, and say so in the commit.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tests.trainer.models import ALL_MODELS, batch, build, training_noise
from trainer.training.optimizer import OptimConfig, adamw

STEPS, BATCH = 20, 8


def path(name: str) -> Path:
    """Where the curve of a model is kept."""
    return Path(__file__).parent / f"{name}.json"


def curve(name: str) -> list[float]:
    """The mean of what is descended, nats an image, before each of the first steps, in float64 on CPU."""
    model = build(name).double()
    optimizer = adamw(model, OptimConfig(lr=3e-3))
    losses = []
    for step in range(STEPS):
        images = batch(ALL_MODELS[name][0], BATCH, seed=step % 4)
        noise = training_noise(BATCH, step * BATCH, torch.float64)
        loss = model(images, None, noise, torch.tensor(float(step * BATCH))).loss.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    for each in ALL_MODELS:
        path(each).write_text(json.dumps(curve(each), indent=0) + "\n")
