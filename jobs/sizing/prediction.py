"""The costs of a run on a number of ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from datasets.order.dealing import largest_share
from jobs.sizing.hardware import Hardware
from jobs.sizing.setting import Setting
from trainer.models import Model
from trainer.networks.unit import units
from trainer.sizing.memory import Pass, PeakMemory, peak_memory
from trainer.sizing.traffic import Traffic, traffic
from trainer.tracking.flops import Pass as Costs
from trainer.tracking.flops import measure
from trainer.training.posthoc_ema import WIDTHS
from trainer.training.recomputation import recompute, recomputed_units

FREE = 0.1  # of a GPU's memory: for the CUDA context, libraries' workspaces and memory that is free in pieces
HOUR, DAY = 3600, 24 * 3600


class StateBytes(NamedTuple):
    """Bytes of a run's state, of all ranks together when it is sharded."""

    weights: int
    gradients: int
    optimizer: int  # AdamW's two moments
    averages: int  # float32: the EMA, and those of `optim.posthoc`

    @property
    def checkpoint(self) -> int:
        """Bytes of a checkpoint."""
        return self.weights + self.optimizer + self.averages


def state_bytes(model: Model, posthoc: bool) -> StateBytes:
    """Bytes of the state of a model in training, with the averages of `optim.posthoc` or without."""
    trained = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters() if tensor.requires_grad)
    average = 4 * sum(tensor.numel() for tensor in model.parameters())
    return StateBytes(
        weights=sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values()),
        gradients=trained,
        optimizer=2 * trained,
        averages=average * (1 + len(WIDTHS) * posthoc),
    )


class Prediction(NamedTuple):
    """What a run takes on some ranks."""

    parameters: int
    trained: int
    state: StateBytes
    costs: Costs
    at_once: Pass
    share: int  # images of a rank and step, at most
    passes: int  # micro-batches of a rank and step
    peak: PeakMemory
    traffic: Traffic
    note: str  # of activation checkpointing
    hardware: Hardware
    batch: int
    images: int  # of the whole run
    fits: int | None  # largest micro-batch, up to the share; None: not asked for, or the GPU is not known

    @property
    def step_flops(self) -> float:
        """Of a rank in a step."""
        return self.costs.flops * self.batch / self.at_once.ranks

    @property
    def compute_seconds(self) -> float | None:
        """Of a step at the peak of the data sheet, without recomputation."""
        return None if self.hardware.peak is None else self.step_flops / self.hardware.peak

    @property
    def network_seconds(self) -> float:
        """Of a step, at the stated rates."""
        of, ranks = self.hardware, self.at_once.ranks
        within = of.inside if (self.at_once.shard_over or 1) <= of.machine else of.network
        copies = of.inside if ranks <= of.machine else of.network
        return (self.traffic.weights + self.traffic.gradients) / within + self.traffic.copies / copies

    @property
    def least_seconds(self) -> float:
        """Of a step: computing at the peak and sending at the stated rates overlap."""
        return max(self.compute_seconds or 0.0, self.network_seconds)

    @property
    def images_per_day(self) -> float | None:
        """At the stated MFU, or as the network allows if that is less."""
        if self.compute_seconds is None:
            return None
        return DAY * self.batch / max(self.compute_seconds / self.hardware.mfu, self.network_seconds)

    @property
    def gpu_hours(self) -> float | None:
        """Of the whole run."""
        pace = self.images_per_day
        return None if pace is None else self.images / pace * DAY / HOUR * self.at_once.ranks


def predict(setting: Setting, ranks: int, hardware: Hardware, what_fits: bool = True) -> Prediction:
    """Trace a step of the setting on `ranks`; with another micro-batch too, to tell `what_fits`."""
    trainer, optim = setting.config.trainer, setting.config.optim
    share = largest_share(trainer.batch, setting.streams, ranks) if ranks <= setting.streams else 1
    images = min(trainer.images_at_once or share, share)
    bf16 = setting.precision == "bf16"
    low = torch.bfloat16 if bf16 else torch.float32
    with FakeTensorMode():
        model = setting.build()
    again, note = recomputed_units(model, trainer.activation_checkpointing, images, low)
    numbers = [number for number, unit in enumerate(units(model)) if any(unit is other for other in again)]

    def build() -> Model:
        built = setting.build()
        found = units(built)
        for number in numbers:
            recompute(found[number])
        return built

    over = None
    if trainer.sharding == "fsdp" and ranks > 1:
        inside = hardware.machine if ranks % hardware.machine == 0 and hardware.machine > 1 else ranks
        over = min(inside, ranks) if trainer.shard_over == "auto" else trainer.shard_over
    passes = -(-share // images)
    at_once = Pass(ranks, over, images, bf16, accumulates=passes > 1)

    def peak_at(count: int) -> int:
        return peak_memory(build, at_once._replace(images=count), optim).total

    peak = peak_memory(build, at_once, optim)
    fits = None
    if what_fits and hardware.memory is not None:
        fits = largest_fitting(peak_at, share, int((1 - FREE) * hardware.memory))
    return Prediction(
        parameters=sum(tensor.numel() for tensor in model.parameters()),
        trained=sum(tensor.numel() for tensor in model.parameters() if tensor.requires_grad),
        state=state_bytes(model, optim.posthoc > 0),
        costs=measure(model, low),
        at_once=at_once,
        share=share,
        passes=passes,
        peak=peak,
        traffic=traffic(model, at_once, passes),
        note=note,
        hardware=hardware,
        batch=trainer.batch,
        images=trainer.images,
        fits=fits,
    )


def largest_fitting(peak_at: Callable[[int], int], most: int, limit: int) -> int:
    """About the largest number of images, up to `most`, whose peak is within `limit` bytes; 0: not even one fits.

    The peak is the maximum over moments of a step, each of which grows linearly: a convex function, below its chords.
    """
    high, above = most, peak_at(most)
    if above <= limit:
        return most
    low, below = 1, peak_at(1) if most > 1 else above
    if below > limit:
        return 0
    for _ in range(2):
        between = min(low + int((limit - below) / (above - below) * (high - low)), high - 1)
        if between == low:
            break
        low, below = between, peak_at(between)
    return low
