"""Running sums of the logged figures, on the device; read by the host and summed over the ranks once a row."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from trainer.checkpoints.journal import Row
from trainer.conditions import training_in_words
from trainer.distributed.ranks import all_reduce_sum, rank, world_size
from trainer.elbo import Elbo, bits_per_dimension
from trainer.models.base import Model, known_conditions


class Metrics:
    """Sums since the last row: nats and images of this rank, gradient norms of the global batch."""

    def __init__(self, device: torch.device):
        self.device = device
        self.names: list[str] = []
        self.nats: Tensor | None = None  # float64: images, distortion, each rate; this rank's part
        self.dimensions: Tensor | None = None  # float64: sum of D over these images, where D differs
        self.norms = torch.zeros(2, dtype=torch.float64, device=device)  # steps, sum of norms; the same on every rank

    @torch.no_grad()
    def add(self, elbo: Elbo, weights: Tensor) -> None:
        """Add a micro-batch; images whose bound is not finite do not count."""
        self.names = list(elbo.rates)
        columns = torch.stack([torch.ones_like(weights), elbo.distortion, *elbo.rates.values()])
        counted = columns.isfinite().all(0) & (weights > 0)
        part = torch.where(counted, columns * weights, 0).double().sum(1)
        self.nats = part if self.nats is None else self.nats + part
        if elbo.dimensions is not None:
            dimensions = torch.where(counted, elbo.dimensions, 0).sum()
            self.dimensions = dimensions if self.dimensions is None else self.dimensions + dimensions

    @torch.no_grad()
    def add_norm(self, norm: Tensor) -> None:
        """Add the gradient norm of a step; one that is not finite does not count."""
        finite = torch.isfinite(norm)
        self.norms += torch.stack([finite, torch.where(finite, norm, torch.zeros_like(norm))]).double()

    def row(self, model: Model) -> Row:
        """The means in nats an image and bits per dimension, and what they are conditional on; resets the sums. All
        ranks together.
        """
        assert self.nats is not None, "no step since the last row"
        images, distortion, *rates = all_reduce_sum(self.nats).tolist()
        steps, norms = self.norms.tolist()
        hidden = model.hidden_in_training
        row: Row = {"train/conditions": training_in_words({name: hidden[name] for name in known_conditions(model)})}
        if images:  # else no image had a finite bound
            row["train/nats"] = nats = (distortion + sum(rates)) / images
            if not model.is_density:
                total = None if self.dimensions is None else all_reduce_sum(self.dimensions).item()
                row["train/bpd"] = bits_per_dimension(nats, total / images if total else model.spec.dimensions)
            row["train/distortion"] = distortion / images
            row |= {f"train/rate/{name}": rate / images for name, rate in zip(self.names, rates, strict=True)}
        row["train/gradient_norm"] = norms / max(steps, 1)
        self.nats = self.dimensions = None
        self.norms.zero_()
        return row

    def state_dict(self) -> dict[str, Any]:
        """The sums over all ranks, as numbers. All ranks together."""
        nats = None if self.nats is None else all_reduce_sum(self.nats).tolist()
        dimensions = None if self.dimensions is None else all_reduce_sum(self.dimensions).item()
        return {"names": self.names, "nats": nats, "norms": self.norms.tolist(), "dimensions": dimensions}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the sums of a checkpoint: rank 0 takes all of them."""
        self.names = state["names"]
        if state["nats"] is not None:
            nats = torch.tensor(state["nats"], dtype=torch.float64, device=self.device)
            self.nats = nats if rank() == 0 else torch.zeros_like(nats)
        self.norms = torch.tensor(state["norms"], dtype=torch.float64, device=self.device)
        if (dimensions := state.get("dimensions")) is not None:
            total = torch.tensor(dimensions, dtype=torch.float64, device=self.device)
            self.dimensions = total if rank() == 0 else torch.zeros_like(total)


class Clock:
    """Images per second of training alone, and how long data and checkpoints held it up."""

    def __init__(self, images: int, utilisation: float | None = None):
        """`utilisation`: the share of a device's peak FLOP/s at one image a second; None if unknown."""
        self.images, self.waited, self.since = images, 0.0, time.monotonic()
        self.utilisation = utilisation
        self.paused = self.stalled = 0.0  # seconds since the last row

    def row(self, images: int, waited: float) -> dict[str, float]:
        """The rates since the last row; `waited` is the loader's running total in seconds."""
        seconds = max(time.monotonic() - self.since - self.paused, 1e-9)
        images_per_second = (images - self.images) / seconds
        row = {
            "images_per_second": images_per_second,
            "images_per_second_per_device": images_per_second / world_size(),
        }
        if self.utilisation is not None:
            row["mfu"] = self.utilisation * images_per_second / world_size()
        row |= {"data_wait": (waited - self.waited) / seconds, "checkpoint_stall": self.stalled}
        self.images, self.waited, self.since = images, waited, time.monotonic()
        self.paused = self.stalled = 0.0
        return row

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """The block is no training: evaluation, pictures."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.paused += time.monotonic() - began

    @contextlib.contextmanager
    def stall(self) -> Iterator[None]:
        """The block holds training up for a checkpoint: a pause that the next row reports."""
        before = self.paused
        with self.pause():
            yield
        self.stalled += self.paused - before
